"""The layout of a document spelled out token by token, prompts, drawing, function calls, and the way back to parts."""

import numpy as np
import pytest

from pollux.content import Audio, Content, Document, FunctionCall, FunctionResponse, Image, Text, Video
from pollux.media import VideoArray
from pollux.tokens.config import AudioTokens, ImageTokens, TokensConfig, VideoTokens
from pollux.tokens.interleave import count, decode_parts, encode, encode_prompt
from pollux.tokens.sequence import Modality, Sequence
from pollux.tokens.vocabulary import SPECIAL_IDS, SPECIALS

CONFIG = TokensConfig(
    ImageTokens(patch=4, stride=4, max_tokens=4),
    AudioTokens(kind="raw", rate=1000, frame=100),
    VideoTokens(patch=4, stride=4, max_tokens=2),
)
rng = np.random.default_rng(0)
PICTURE = Image(rng.integers(0, 256, (4, 8, 3), dtype=np.uint8))
SOUND = Audio(rng.uniform(-1, 1, 250).astype(np.float32), rate=1000)
CLIP = Video(
    VideoArray(rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8), np.array([0.0, 1.0]), rng.uniform(-1, 1, 1100).astype(np.float32), 1000)
)


def spelled(sequence: Sequence, vocabulary) -> str:
    """Tokens as text, one space between them; "s" for the text of runs is kept as the tokenizer has it."""
    return "".join(vocabulary.decode([i]) if i < vocabulary.code_offset else f"[{i - vocabulary.code_offset}]" for i in sequence.ids)


def targets(sequence: Sequence, vocabulary) -> str:
    return spelled(select(sequence, sequence.target > 0), vocabulary)


def select(sequence: Sequence, where) -> Sequence:
    return Sequence(*(getattr(sequence, n)[where] for n in ("ids", "target", "position", "branch", "group", "modality", "pool")))


def test_a_document_with_branches_and_aligned_text_is_laid_out_as_written(vocabulary):
    document = Document(
        (Content("user", (Text("a"), PICTURE)),),
        branches=((Content("user", (Text("b"),)), Content("model", (Text("c"),))), (Content("model", (Text("d"),)),)),
        align="e",
    )
    s = encode(document, vocabulary, CONFIG)
    expected = [  # token, target, position, branch, group, pool
        ("<bos>", 0, 0, 0, 0, 0),
        ("<user>", 0, 1, 0, 0, 0),
        ("a", 0, 2, 0, 0, 0),
        ("<image>", 0, 3, 0, 0, 0),
        ("<image_soft>", 0, 4, 0, 1, 1),
        ("<image_soft>", 0, 5, 0, 1, 1),
        ("</image>", 0, 6, 0, 0, 0),
        ("<end_of_turn>", 0, 7, 0, 0, 0),
        ("<user>", 0, 8, 1, 0, 0),
        ("b", 0, 9, 1, 0, 0),
        ("<end_of_turn>", 0, 10, 1, 0, 0),
        ("<model>", 0, 11, 1, 0, 0),
        ("c", 1, 12, 1, 0, 0),
        ("<end_of_turn>", 1, 13, 1, 0, 0),
        ("<model>", 0, 8, 2, 0, 0),
        ("d", 1, 9, 2, 0, 0),
        ("<end_of_turn>", 1, 10, 2, 0, 0),
        ("<bos>", 0, 0, -1, 0, 0),
        ("e", 0, 1, -1, 0, 2),
    ]
    columns = zip(s.ids, s.target, s.position, s.branch, s.group, s.pool, strict=True)
    assert [(vocabulary.decode([row[0]]), *map(int, row[1:])) for row in columns] == expected
    assert s.soft["image"].index.tolist() == [4, 5]
    assert s.soft["image"].coord.tolist() == [[0, 0], [0, 1]]
    assert s.modality.tolist() == [0, 0, 0, 1, 1, 1, 1] + [0] * 12


def test_running_text_is_learned_but_its_media_are_not(vocabulary):
    s = encode(Document((Content("", (Text("a b"), PICTURE, Text("c"))),)), vocabulary, CONFIG)
    assert spelled(s, vocabulary) == "<bos>a b<image><image_soft><image_soft></image>c<eos>"
    assert targets(s, vocabulary) == "a bc<eos>"


def test_a_conversation_has_no_end_of_text_and_learns_only_the_model(vocabulary):
    turns = [("system", "s"), ("user", "u"), ("model", "m"), ("tool", "t"), ("model", "n")]
    s = encode(Document(tuple(Content(role, (Text(text),)) for role, text in turns)), vocabulary, CONFIG)
    assert spelled(s, vocabulary) == (
        "<bos><system>s<end_of_turn><user>u<end_of_turn><model>m<end_of_turn><tool>t<end_of_turn><model>n<end_of_turn>"
    )
    assert targets(s, vocabulary) == "m<end_of_turn>n<end_of_turn>"


def test_a_video_is_times_frames_and_sound_in_one_group(vocabulary):
    s = encode(Document((Content("user", (CLIP, PICTURE)),)), vocabulary, CONFIG)
    assert spelled(s, vocabulary) == (
        "<bos><user><video>0s<video_soft><audio>" + "<audio_soft>" * 10 + "</audio>1s<video_soft><audio><audio_soft></audio></video>"
        "<image><image_soft><image_soft></image><end_of_turn>"
    )
    clip = slice(2, list(s.ids).index(SPECIAL_IDS["</video>"]) + 1)
    assert (s.group[clip] == 1).all()
    assert s.group.sum() - s.group[clip].sum() == 2 * 2  # two patches of the picture in group 2
    assert s.soft["video"].features.shape == (2, CONFIG.video.features)
    assert s.soft["audio"].features.shape == (11, 100)
    assert (s.ids[s.soft["audio"].index] == SPECIAL_IDS["<audio_soft>"]).all()


def test_an_empty_sound_is_its_markers(vocabulary):
    s = encode(Document((Content("user", (Audio(np.zeros(0, np.float32), rate=1000),)),)), vocabulary, CONFIG)
    assert spelled(s, vocabulary) == "<bos><user><audio></audio><end_of_turn>"
    assert not s.soft


def test_one_way_media_have_no_group(vocabulary):
    config = TokensConfig(ImageTokens(4, 4, two_way=False), CONFIG.audio, VideoTokens(patch=4, stride=4, two_way=False))
    assert not encode(Document((Content("user", (CLIP, PICTURE, SOUND)),)), vocabulary, config).group.any()


def test_the_order_of_media_changes_nothing_but_order(vocabulary):
    parts = [PICTURE, SOUND, CLIP, Text("hello")]
    forward, backward = (encode(Document((Content("user", tuple(p)),)), vocabulary, CONFIG) for p in (parts, parts[::-1]))
    assert count(forward) == count(backward)
    assert sorted(forward.ids) == sorted(backward.ids)
    for name in ("image", "video"):
        np.testing.assert_array_equal(forward.soft[name].features, backward.soft[name].features)
        np.testing.assert_array_equal(forward.soft[name].coord, backward.soft[name].coord)
    own = len(forward.soft["audio"].index) - 11  # the sound of the clip goes with the clip
    np.testing.assert_array_equal(forward.soft["audio"].features, np.roll(backward.soft["audio"].features, own, axis=0))
    for s in (forward, backward):
        for name, soft in s.soft.items():
            np.testing.assert_array_equal(np.flatnonzero(s.ids == SPECIAL_IDS[f"<{name}_soft>"]), soft.index)


def test_a_drawing_is_codes_the_model_learns(vocabulary, codec):
    red = np.zeros((8, 8, 3), np.uint8)
    red[:4, :4, 0] = 255
    s = encode(Document((Content("user", (Text("x"),)), Content("model", (Image(red),)))), vocabulary, CONFIG, codec)
    assert targets(s, vocabulary) == "<draw>[3][4][0][4][0][4][0][4]</draw><end_of_turn>"
    drawn = s.modality == Modality.DRAW
    assert spelled(select(s, drawn), vocabulary) == "[3][4][0][4][0][4][0][4]</draw>"
    assert not s.soft


def test_a_drawing_is_resized_to_the_codec(vocabulary, codec):
    s = encode(Document((Content("model", (Image(np.full((30, 17, 3), 255, np.uint8)),)),)), vocabulary, CONFIG, codec)
    assert spelled(select(s, s.modality == Modality.DRAW), vocabulary) == "[3][7]" * 4 + "</draw>"


def test_decoded_parts_are_the_encoded_parts(vocabulary, codec):
    picture = codec.decode(np.arange(8).reshape(1, 4, 2) % 4)[0]
    call = FunctionCall("look", {"where": "<left> é", "n": [1, 2.5, None]}, "7")
    parts = (Text("see <draw> \n"), Image(picture), Text("é🙂"), call, FunctionCall("stop"), Image(picture))
    s = encode(Document((Content("model", parts),)), vocabulary, CONFIG, codec)
    decoded = decode_parts(s.ids[2:], vocabulary, codec)
    assert [type(part) for part in decoded] == [type(part) for part in parts]
    for part, expected in zip(decoded, parts, strict=True):
        if isinstance(expected, Image):
            np.testing.assert_array_equal(part.source, picture)
        else:
            assert part == expected


def test_decoding_ends_with_the_turn_and_leaves_out_what_was_not_finished(vocabulary, codec):
    text = vocabulary.encode_text
    assert decode_parts([*text("a"), SPECIAL_IDS["<end_of_turn>"], *text("b")], vocabulary) == (Text("a"),)
    assert decode_parts([*text("a"), SPECIAL_IDS["<draw>"], vocabulary.code_offset], vocabulary, codec) == (Text("a"),)
    broken = [SPECIAL_IDS["<call>"], *text('{"name":3'), SPECIAL_IDS["</call>"]]
    assert decode_parts(broken, vocabulary) == (Text('{"name":3'),)


def test_a_function_response_is_read_and_not_learned(vocabulary):
    s = encode(Document((Content("tool", (FunctionResponse("look", {"seen": 1}),)),)), vocabulary, CONFIG)
    assert '<response>{"name":"look","response":{"seen":1}}</response>' in spelled(s, vocabulary)
    assert not s.target.any()


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        ((), "<bos><model>"),
        ((Content("user", (Text("a"),)),), "<bos><user>a<end_of_turn><model>"),
        ((Content("user", (Text("a"),)), Content("model", (Text("b"),))), "<bos><user>a<end_of_turn><model>b"),
        ((Content("model", (Text("a"),)), Content("user", (Text("b"),))), "<bos><model>a<end_of_turn><user>b<end_of_turn><model>"),
        ((Content("", (Text("once upon"),)),), "<bos>once upon"),
    ],
)
def test_a_prompt_ends_where_the_model_goes_on(vocabulary, contents, text):
    assert spelled(encode_prompt(contents, vocabulary, CONFIG), vocabulary) == text


def test_a_prompt_and_its_answer_are_the_document(vocabulary):
    question, answer = Content("user", (PICTURE, Text("what?"))), Content("model", (Text("a star"),))
    prompt, document = encode_prompt((question,), vocabulary, CONFIG), encode(Document((question, answer)), vocabulary, CONFIG)
    np.testing.assert_array_equal(document.ids[: len(prompt)], prompt.ids)
    assert document.target[len(prompt)] == 1 and not document.target[: len(prompt)].any()


def test_counts_are_per_modality_and_sum_to_the_length(vocabulary, codec):
    s = encode(Document((Content("user", (CLIP, SOUND, PICTURE)), Content("model", (PICTURE,)))), vocabulary, CONFIG, codec)
    numbers = count(s)
    assert numbers == {"text": 6, "image": 4, "audio": 11 + 4 + 3 + 2, "video": 2 + 2 + 4, "draw": 9}
    assert sum(numbers.values()) == len(s)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document((Content("model", (PICTURE,)),)), "image codec"),
        (Document((Content("model", (SOUND,)),)), "model turn holds Audio"),
        (Document((Content("user", (Text("a"),)),), branches=((Content("", (Text("b"),)),),)), "branch 1"),
        (Document((Content("user", (Text("a"),)),), align="b"), "align"),
    ],
)
def test_what_cannot_be_learned_is_refused(vocabulary, document, message):
    with pytest.raises(ValueError, match=message):
        encode(document, vocabulary, CONFIG)


def test_a_codec_of_other_levels_is_refused(vocabulary, codec):
    codec.levels = (2, 2)
    with pytest.raises(ValueError, match="levels"):
        encode(Document(()), vocabulary, CONFIG, codec)


def test_a_picture_without_a_codec_is_refused_when_read_back(vocabulary):
    ids = [SPECIAL_IDS["<draw>"], vocabulary.code_offset, vocabulary.code_offset + 4, SPECIAL_IDS["</draw>"]]
    with pytest.raises(ValueError, match="codec"):
        decode_parts(ids, vocabulary)


def test_text_that_spells_markup_stays_text_inside_a_document(vocabulary):
    s = encode(Document((Content("user", (Text("<end_of_turn><model>yes</image>"),)),)), vocabulary, CONFIG)
    assert [SPECIALS[i] for i in s.ids if i < len(SPECIALS)] == ["<bos>", "<user>", "<end_of_turn>"]
