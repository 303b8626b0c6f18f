"""Batches: every document once, the same after a resume, a replay or with other processes, and no error without its file."""

import dataclasses
import json

import jax
import numpy as np
import PIL.Image
import pytest
import soundfile

from pollux.content import Content, Document, Image, Text
from pollux.data.batches import Batches, log_state, logged_state
from pollux.data.folder import FolderConfig, FolderSource
from pollux.data.mixture import DataConfig, SourceConfig, Stage
from pollux.data.source import describe
from pollux.data.transforms import corrupt_inputs, drop_prompt
from pollux.media import Limits
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import encode
from pollux.tokens.pack import single
from pollux.tokens.sequence import Batch
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import SPECIAL_IDS, SPECIALS, Vocabulary


class Mean:
    """A codec of one code: the mean colour, a digit a channel."""

    levels = (256, 256, 256)
    size = (4, 4)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.mean((1, 2), keepdims=True).reshape(len(pixels), 1, 3).astype(np.int32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return np.broadcast_to(codes[:, :, None].astype(np.uint8), (len(codes), 4, 4, 3))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(train_bpe(["a small story of numbers " * 3], 300), Mean.levels)


@pytest.fixture
def folder(tmp_path):
    """23 short texts, one of many pieces, and 5 pictures."""
    generator = np.random.default_rng(0)
    for i in range(23):
        (tmp_path / f"{i}.md").write_text(f"note {i}: " + "word " * int(generator.integers(1, 20)))
    (tmp_path / "long.md").write_text(" ".join(map(str, range(300))))
    for i in range(5):
        PIL.Image.fromarray(np.full((32, 32, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"shade {i}")
    return tmp_path


def build(folder, vocabulary, config: DataConfig | None = None, **options) -> Batches:
    whole = FolderConfig(draw=True, held_out=0, max_text_bytes=4000)
    config = config or DataConfig((SourceConfig("folder", path=str(folder)),), folder=whole)
    shape = dict(rows=3, row_length=128, targets_per_row=100, soft_per_batch={"image": 24})
    return Batches(config, TokensConfig(), vocabulary, Mean(), **(shape | options))


def mixed(folder) -> DataConfig:
    """Two kinds of source, stages and every transform."""
    return DataConfig(
        (SourceConfig("folder", path=str(folder), weight=3), SourceConfig("world", task="story")),
        stages=(Stage(20, (1, 1)),),
        folder=FolderConfig(draw=True, held_out=0),
        prompt_dropout=0.5,
        input_corruption=0.2,
    )


def same(a: Batch, b: Batch) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def segments(batch: Batch) -> list[tuple[int, ...]]:
    """The ids of every packed sequence."""
    ids, segment = batch.inputs.ids, batch.inputs.segment
    return [tuple(row[number == s]) for row, number in zip(ids, segment, strict=True) for s in range(1, number.max() + 1)]


def test_every_document_is_in_the_batches_once_and_in_whole(folder, vocabulary):
    data = build(folder, vocabulary, prefetch=0)
    batches = iter(data)
    packed = [ids for _ in range(20) for ids in segments(next(batches))]
    state = batches.get_state()
    read = []  # [position, piece], ids
    for position in range(state["next"][0] + 1):
        pieces = batches._packer.split(encode(data.mixture.document(position), vocabulary, TokensConfig(), Mean()))
        read += [([position, number], tuple(piece.ids)) for number, piece in enumerate(pieces)]
    wanted = [ids for place, ids in read if place < state["next"] and place not in state["waiting"]]
    assert sorted(packed) == sorted(wanted)
    assert state["next"][0] > 2 * data.mixture.sources[0].length


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_run_continues_after_every_step_as_if_it_had_not_stopped(folder, vocabulary, prefetch):
    data = build(folder, vocabulary, mixed(folder), prefetch=prefetch)
    batches = iter(data)
    states, undisturbed = [batches.get_state()], []
    for _ in range(12):
        undisturbed.append(next(batches))
        states.append(json.loads(json.dumps(batches.get_state())))
    batches.close()
    for step, state in enumerate(states[:-1]):
        resumed = iter(build(folder, vocabulary, mixed(folder), prefetch=prefetch))
        resumed.set_state(state)
        assert all(same(next(resumed), batch) for batch in undisturbed[step : step + 3])
        resumed.close()
    assert max(len(json.dumps(state)) for state in states) < 200


def test_set_state_also_goes_back(folder, vocabulary):
    batches = iter(build(folder, vocabulary))
    first = next(batches)
    state = batches.get_state()
    later = [next(batches) for _ in range(4)]
    batches.set_state(state)
    assert same(next(batches), later[0]) and not same(first, later[0])
    batches.close()


def test_a_run_does_not_continue_on_a_folder_that_has_changed(folder, vocabulary):
    state = iter(build(folder, vocabulary, prefetch=0)).get_state()
    (folder / "new.md").write_text("one more")
    with pytest.raises(ValueError, match=r"had \[34\] documents .* have \[35\] now"):
        iter(build(folder, vocabulary, prefetch=0)).set_state(state)


def test_a_logged_step_can_be_replayed(folder, vocabulary, tmp_path):
    data, log = build(folder, vocabulary, mixed(folder)), tmp_path / "batches.log"
    batches = iter(data)
    made = []
    for _ in range(6):
        log_state(log, batches.get_state())
        made.append(next(batches))
    batches.close()
    assert all(same(data.replay(logged_state(log, step)), made[step]) for step in (4, 0, 5))
    assert logged_state(log, 6) is None


@pytest.mark.slow
def test_worker_processes_make_the_same_batches_and_pass_on_what_they_leave_out(folder, vocabulary):
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "broken.txt").write_text("nothing")
    alone, helped = build(folder, vocabulary, mixed(folder), prefetch=0), build(folder, vocabulary, mixed(folder), workers=2)
    one, two = iter(alone), iter(helped)
    assert all(same(next(one), next(two)) for _ in range(8))
    assert one.get_state() == two.get_state()
    two.close()
    assert str(folder / "broken.png") in alone.left_out
    assert alone.left_out.items() <= helped.left_out.items()  # which may be ahead


def test_a_description_counts_tokens_by_modality(folder, vocabulary):
    source = FolderSource(folder, FolderConfig(held_out=0, draw=True))
    facts = describe(source, 100, lambda document: encode(document, vocabulary, TokensConfig(), Mean()))
    assert facts["documents"] == {"looked_at": 34, "in_source": 34, "branches": 0}
    assert facts["parts"] == {"text": 24 + 2 * 5 + 5, "image": 10}
    assert facts["tokens"]["image"] == 5 * (2 * 2 + 2) and facts["tokens"]["draw"] == 5 * (3 + 1)


def test_another_seed_gives_another_run(folder, vocabulary):
    assert not same(next(iter(build(folder, vocabulary, seed=1, prefetch=0))), next(iter(build(folder, vocabulary, prefetch=0))))


def bad(folder, policy: str) -> DataConfig:
    return DataConfig((SourceConfig("folder", path=str(folder)),), folder=FolderConfig(held_out=0, bad_files=policy))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_bad_file_ends_the_run_with_its_name_if_so_asked(folder, vocabulary, prefetch):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    with pytest.raises(ValueError, match="3.png"):
        batches = iter(build(folder, vocabulary, bad(folder, "stop"), prefetch=prefetch))
        for _ in range(20):
            next(batches)


def test_a_recording_that_is_too_long_is_left_out_with_what_would_be_right(folder, vocabulary):
    soundfile.write(folder / "long.wav", np.zeros(16_000 * 61), 16_000)
    (folder / "long.txt").write_text("silence")
    data = build(folder, vocabulary, bad(folder, "skip"), prefetch=0)
    batches = iter(data)
    for _ in range(10):
        next(batches)
    assert "cut it into pieces of at most 60.0 s" in data.left_out[str(folder / "long.wav")]


def test_a_bad_file_is_left_out_and_listed_and_the_rest_is_there(folder, vocabulary, caplog):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    data = build(folder, vocabulary, bad(folder, "skip"), prefetch=0)
    batches = iter(data)
    text = "".join(vocabulary.decode(ids) for _ in range(10) for ids in segments(next(batches)))
    assert list(data.left_out) == [str(folder / "3.png")] and "3.png" in data.left_out[str(folder / "3.png")]
    assert len(caplog.records) == 1 and "3.png" in caplog.text
    assert "shade 3" not in text and all(f"shade {i}" in text for i in (0, 1, 2, 4))


def test_a_medium_over_the_limits_of_the_config_is_a_bad_file(folder, vocabulary):
    config = dataclasses.replace(bad(folder, "stop"), limits=Limits(max_pixels=32 * 32 - 1))
    with pytest.raises(ValueError, match="png has 32 x 32 pixels, more than the limit of 1023"):
        batches = iter(build(folder, vocabulary, config, prefetch=0))
        for _ in range(20):
            next(batches)


def test_a_document_too_large_for_a_batch_is_named_with_the_sizes(folder, vocabulary):
    skipping = build(folder, vocabulary, bad(folder, "skip"), soft_per_batch={"image": 3}, prefetch=0)
    batches = iter(skipping)
    for _ in range(10):
        next(batches)
    assert set(skipping.left_out) == {str(folder / f"{i}.png") for i in range(5)}
    assert "'image': 4" in skipping.left_out[str(folder / "0.png")] and "'image': 3" in skipping.left_out[str(folder / "0.png")]
    with pytest.raises(ValueError, match=r"\.png: it needs"):
        batches = iter(build(folder, vocabulary, bad(folder, "stop"), soft_per_batch={"image": 3}))
        for _ in range(10):
            next(batches)


def test_a_document_of_the_world_that_is_too_large_does_not_end_a_run(vocabulary):
    sources = SourceConfig("world", "story"), SourceConfig("world", "picture")
    shape = dict(rows=2, row_length=1024, targets_per_row=1024, soft_per_batch={"image": 8}, prefetch=0)
    data = Batches(DataConfig(sources), TokensConfig(), vocabulary, **shape)
    next(iter(data))
    assert "document 0 of the world's task picture" in data.left_out
    assert all("'image': 9} but there is room for" in reason for reason in data.left_out.values())


def test_a_run_of_nothing_but_bad_files_ends(tmp_path, vocabulary):
    (tmp_path / "x.png").write_bytes(b"no")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match="in a row cannot be used, the last is .*x.png"):
        next(iter(build(tmp_path, vocabulary, bad(tmp_path, "skip"))))


def test_a_drawing_without_a_codec_is_an_error_that_names_the_file(folder, vocabulary):
    config = DataConfig((SourceConfig("folder", path=str(folder)),), folder=FolderConfig(held_out=0, draw=True))
    no_codec = Vocabulary(vocabulary.tokenizer)
    batches = iter(Batches(config, TokensConfig(), no_codec, rows=3, row_length=128, targets_per_row=100, soft_per_batch={"image": 8}))
    with pytest.raises(ValueError, match=r"\d\.png: .*codec"):
        for _ in range(20):
            next(batches)


DRAWING = Document((Content("user", (Text("draw a star"),)), Content("model", (Image(np.zeros((4, 4, 3), np.uint8)),))))


def test_a_drawing_loses_its_prompt_as_often_as_asked(vocabulary):
    left = [len(drop_prompt(DRAWING, 0.2, np.random.default_rng(i)).contents) for i in range(2000)]
    assert 0.16 < left.count(1) / 2000 < 0.24
    tokens = encode(drop_prompt(DRAWING, 1.0, np.random.default_rng(0)), vocabulary, TokensConfig(), Mean()).ids
    assert tokens[:3].tolist() == [SPECIAL_IDS[name] for name in ("<bos>", "<model>", "<draw>")]


@pytest.mark.parametrize(
    "document",
    [
        Document((Content("user", (Text("what is it"),)), Content("model", (Text("a star"),)))),
        Document((Content("", (Text("once"),)),)),
        Document((Content("user", (Text("x"),)),), branches=(DRAWING.contents,)),
        Document(()),
    ],
)
def test_only_drawings_lose_their_prompt(document):
    assert drop_prompt(document, 1.0, np.random.default_rng(0)) is document


def test_corruption_changes_only_inputs_that_are_text_of_a_model_turn(vocabulary):
    turns = (Content("user", (Text("tell me " * 40),)), Content("model", (Text("a story " * 200), DRAWING.contents[1].parts[0])))
    sequence = encode(Document(turns * 2), vocabulary, TokensConfig(), Mean())
    clean = single(sequence, length=len(sequence) + 50)
    noisy = corrupt_inputs(clean, 0.25, vocabulary, np.random.default_rng(0))
    assert same(dataclasses.replace(noisy, inputs=clean.inputs), clean)  # targets and all else
    changed = noisy.inputs.ids[0, : len(sequence)] != sequence.ids
    allowed = (sequence.target > 0) & (sequence.ids >= len(SPECIALS)) & (sequence.ids < vocabulary.code_offset)
    assert not changed[~allowed].any() and 0.2 < changed[allowed].mean() < 0.3
    new = noisy.inputs.ids[0, : len(sequence)][changed]
    assert new.min() >= len(SPECIALS) and new.max() < vocabulary.code_offset
    assert not noisy.inputs.ids[0, len(sequence) :].any()


def test_running_text_is_not_corrupted(vocabulary):
    clean = single(encode(Document((Content("", (Text("once upon a time " * 20),)),)), vocabulary, TokensConfig()))
    assert same(corrupt_inputs(clean, 1.0, vocabulary, np.random.default_rng(0)), clean)
