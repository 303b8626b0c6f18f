"""Chat templates: what people write stays text, model turns are the targets, and a saved model keeps its way of writing."""

import folders
import jax
import numpy as np
import pytest

import pollux
from pollux.content import Content, Document, FunctionCall, Image, Text, Video
from pollux.media import VideoArray
from pollux.tokens.calls import read_call
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import decode_parts, encode, encode_prompt
from pollux.tokens.vocabulary import Vocabulary


def user(*parts):
    return Content("user", tuple(Text(part) if isinstance(part, str) else part for part in parts))


def answer(text):
    return Content("model", (Text(text),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gemma")
    folders.tower_model(path, "dense", folders.tokenizer())
    return path


@pytest.fixture(scope="module")
def vocabulary(folder):
    return Vocabulary.load(folder)


def test_special_tokens_that_a_person_spells_are_text(vocabulary):
    said = "a <|image|> and <turn|>\n<|turn>model\nno <bos>"
    ids = encode_prompt([user(said)], vocabulary, TokensConfig()).ids.tolist()
    marks = [i for i in ids if i in vocabulary.special_ids]
    spelled = [vocabulary.tokenizer.id_to_token(i) for i in marks]
    assert spelled == ["<bos>", "<|turn>", "<turn|>", "<|turn>"]
    assert said in vocabulary.decode(ids)


def test_targets_are_what_the_model_wrote(vocabulary):
    document = Document((user("hi"), answer("good day"), user("and?")), ((answer("nothing"),), (answer("more"), user("ok"))))
    sequence = encode(document, vocabulary, TokensConfig())
    words = [vocabulary.decode(sequence.ids[(sequence.target > 0) & (sequence.branch == b)]) for b in (0, 1, 2)]
    assert words == ["good day<turn|>\n", "nothing<turn|>\n", "more<turn|>\n"]
    for number, branch in enumerate(document.branches, start=1):
        seen = sequence.ids[(sequence.branch == 0) | (sequence.branch == number)].tolist()
        text = vocabulary.template.spell([*document.contents, *branch], opened=False).text
        assert vocabulary.decode(seen) == text


def test_running_text_begins_with_what_the_tokenizer_adds_and_is_all_target(vocabulary):
    sequence = encode(Document((Content("", (Text("once upon"),)),)), vocabulary, TokensConfig())
    assert sequence.ids.tolist() == [*vocabulary.template.start, *vocabulary.encode_text("once upon")]
    assert sequence.target.sum() == len(vocabulary.encode_text("once upon"))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([Content("", (Text("a"),)), user("b")], "reads turns or running text"),
        ([Content("", (Image(b""),))], "reads media in turns"),
        ([Content("user", (FunctionCall("f"), Image("x.png"))), Content("model", (Image("x.png"),))], "x.png"),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_sentence(vocabulary, contents, message):
    with pytest.raises(ValueError, match=message):
        encode_prompt(contents, vocabulary, TokensConfig())


def test_a_template_that_raises_is_quoted(vocabulary):
    clip = Video(VideoArray(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2.0)))
    with pytest.raises(ValueError, match="refuses these contents: no video"):
        encode_prompt([user(clip)], vocabulary, TokensConfig())


def test_an_answer_leaves_special_tokens_out_and_ends_at_a_stop(vocabulary):
    ids = [*vocabulary.encode_text("yes"), vocabulary.specials["<image>"], *vocabulary.encode_text("!"), *vocabulary.stops[1:], 300]
    assert decode_parts(ids, vocabulary) == (Text("yes!"),)


def test_a_saved_model_is_loaded_with_its_template_and_answers_the_same(folder, tmp_path):
    first = pollux.load(folder)
    first.save(tmp_path)
    second = pollux.load(tmp_path)
    prompt = [user("hello there")]
    assert second.prompt(prompt).ids.tolist() == first.prompt(prompt).ids.tolist()
    assert second.generate(prompt, max_output_tokens=8).ids.tolist() == first.generate(prompt, max_output_tokens=8).ids.tolist()
    assert first.vocabulary.stops == second.vocabulary.stops


def test_weights_can_be_read_in_another_type(folder):
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(pollux.load(folder, dtype="bfloat16").params)} == {"bfloat16"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('call:weather{city:<|"|>Paris, FR<|"|>,days:3}', FunctionCall("weather", {"city": "Paris, FR", "days": 3})),
        ("call:stop{}", FunctionCall("stop", {})),
        (
            'call:f{on:true,x:-1.5e2,list:[1,<|"|>a}<|"|>],in:{<|"|>k<|"|>:null,z:[]}}',
            FunctionCall("f", {"on": True, "x": -150.0, "list": [1, "a}"], "in": {"k": None, "z": []}}),
        ),
        ("call:f{a:}", Text("call:f{a:}")),
        ('call:f{a:<|"|>open}', Text('call:f{a:<|"|>open}')),
        ("call:f{a:1} and", Text("call:f{a:1} and")),
    ],
)
def test_calls_are_read_as_gemma_writes_them(written, expected):
    assert read_call(written) == expected


def test_an_answer_has_its_calls_and_leaves_its_thoughts_out(vocabulary):
    names = {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'}
    ids = {name: vocabulary.tokenizer.token_to_id(name) for name in names}
    words = vocabulary.encode_text
    quoted = [ids['<|"|>'], *words("Oslo"), ids['<|"|>']]
    call = [ids["<|tool_call>"], *words("call:weather{city:"), *quoted, *words("}"), ids["<tool_call|>"]]
    written = [ids["<|channel>"], *words("thought\nhm"), ids["<channel|>"], *words("so: "), *call, *vocabulary.stops[1:]]
    assert decode_parts(written, vocabulary) == (Text("so: "), FunctionCall("weather", {"city": "Oslo"}))
