"""Invariants of packed rows: nothing is lost, nothing leaks between documents, shapes never change."""

import numpy as np
import pytest

from pollux.content import Audio, Content, Document, Image, Text
from pollux.tokens.config import AudioTokens, ImageTokens, TokensConfig
from pollux.tokens.interleave import encode
from pollux.tokens.pack import Capacities, Packer, single, to_batch
from pollux.tokens.sequence import Batch, Modality

CONFIG = TokensConfig(ImageTokens(patch=4, stride=4, max_tokens=8), AudioTokens(kind="raw", rate=1000, frame=100))
SOFT = {"image": 30, "audio": 15, "video": 9}


def random_document(rng: np.random.Generator) -> Document:
    def text() -> Text:
        return Text("".join(rng.choice(list("ab 12é"), rng.integers(1, 12))))

    def question() -> tuple[Content, ...]:
        return Content("user", (text(),)), Content("model", (text(),))

    picture = Image(rng.integers(0, 256, (4 * rng.integers(1, 3), 8, 3), dtype=np.uint8))
    sound = Audio(rng.uniform(-1, 1, rng.integers(1, 400)).astype(np.float32), 1000)
    match rng.integers(5):
        case 0:
            return Document((Content("", (text(),)),))
        case 1:
            return Document((Content("user", (picture,)),), tuple(question() for _ in range(rng.integers(1, 4))), align="ab")
        case 2:
            return Document((Content("user", (sound, text())), Content("model", (text(),))))
        case 3:
            return Document((Content("user", (picture, sound, picture)),), (question(),))
        case _:
            return Document((*question(), *question()))


def packed(vocabulary, codec=None, rows=3, count=40):
    """A full batch, the sequences in it and the packer."""
    rng = np.random.default_rng(1)
    packer, placed = Packer(rows, 128, 60, SOFT, CONFIG), []
    for _ in range(count):
        sequence = encode(random_document(rng), vocabulary, CONFIG)
        if packer.add(sequence):
            placed.append(sequence)
    return packer.take(), placed, packer


def test_every_document_is_found_again_in_its_segment(vocabulary):
    batch, placed, _ = packed(vocabulary)
    inputs = batch.inputs
    found = 0
    for row in range(3):
        for number in range(1, inputs.segment[row].max() + 1):
            where = np.flatnonzero(inputs.segment[row] == number)
            assert (np.diff(where) == 1).all()
            match = [s for s in placed if len(s) == len(where) and (s.ids == inputs.ids[row, where]).all()]
            match = [s for s in match if same_soft(s, inputs, row, where)]
            assert match
            np.testing.assert_array_equal(inputs.position[row, where], match[0].position)
            np.testing.assert_array_equal(inputs.branch[row, where], match[0].branch)
            np.testing.assert_array_equal(batch.targets.pool[row, where], match[0].pool)
            found += 1
    assert found == len(placed) > 6


def same_soft(sequence, inputs, row, where) -> bool:
    for name, soft in inputs.soft.items():
        at = where + 128 * row
        mine = np.isin(soft.index[0], at)
        theirs = sequence.soft.get(name)
        if mine.sum() != (0 if theirs is None else len(theirs.index)):
            return False
        if theirs is not None and not (
            (soft.index[0, mine] - at[0] == theirs.index).all()
            and (soft.features[0, mine] == theirs.features).all()
            and (soft.coord[0, mine] == theirs.coord).all()
        ):
            return False
    return True


def test_every_target_follows_its_predecessor_in_its_branch_and_document(vocabulary):
    batch, placed, _ = packed(vocabulary)
    inputs, targets = batch.inputs, batch.targets
    assert (targets.weight > 0).sum() == sum((s.target > 0).sum() for s in placed)
    for row, slot in np.argwhere(targets.weight > 0):
        t = targets.index[row, slot]
        assert targets.ids[row, slot] == inputs.ids[row, t + 1]
        assert inputs.segment[row, t] == inputs.segment[row, t + 1] > 0
        assert inputs.branch[row, t] == inputs.branch[row, t + 1]
        assert inputs.position[row, t] + 1 == inputs.position[row, t + 1]


def test_no_group_spans_two_documents(vocabulary):
    inputs = packed(vocabulary)[0].inputs
    for row in range(3):
        groups = {(g, s) for g, s in zip(inputs.group[row], inputs.segment[row], strict=True) if g}
        assert len(groups) > 1 and len({g for g, _ in groups}) == len(groups)


def test_padding_is_marked_everywhere(vocabulary):
    batch, _, _ = packed(vocabulary)
    empty = batch.inputs.segment == 0
    assert empty.any() and not batch.inputs.ids[empty].any() and not batch.targets.pool[empty].any()
    for soft in batch.inputs.soft.values():
        unused = soft.index == 3 * 128
        assert not soft.features[unused].any()
        assert (batch.inputs.segment.reshape(-1)[soft.index[~unused]] > 0).all()


def shapes(batch: Batch):
    import jax

    return jax.tree.map(lambda x: (x.shape, x.dtype), batch)


def test_shapes_do_not_depend_on_the_documents(vocabulary):
    full, _, packer = packed(vocabulary)
    assert packer.add(encode(Document((Content("", (Text("a"),)),)), vocabulary, CONFIG))
    text_only, nothing = packer.take(), packer.take()
    assert shapes(full) == shapes(text_only) == shapes(nothing)
    assert set(nothing.inputs.soft) == set(SOFT) and not nothing.targets.weight.any()


def test_what_does_not_fit_waits_for_the_next_batch(vocabulary):
    sequence = encode(Document((Content("", (Text("12345678"),)),)), vocabulary, CONFIG)  # <bos> 8 digits <eos>
    packer = Packer(2, 25, 100, {}, CONFIG)
    assert [packer.add(sequence) for _ in range(5)] == [True] * 4 + [False]
    assert packer.take().inputs.segment[:, ::10].tolist() == [[1, 2, 0], [1, 2, 0]]
    assert packer.add(sequence)


def picture_of_eight(vocabulary):
    return encode(Document((Content("user", (Image(np.zeros((8, 16, 3), np.uint8)),)),)), vocabulary, CONFIG)


def test_targets_are_a_rows_own_and_soft_tokens_shared_by_all_rows(vocabulary):
    text = encode(Document((Content("", (Text("1234"),)),)), vocabulary, CONFIG)  # five targets
    picture = picture_of_eight(vocabulary)
    packer = Packer(2, 1000, 9, {"image": 23}, CONFIG)
    assert [packer.add(text) for _ in range(3)] == [True, True, False]
    assert [packer.add(picture) for _ in range(3)] == [True, True, False]
    assert packer.take().inputs.soft["image"].index.shape == (1, 23)
    assert packer.add(picture)


def test_the_rows_of_a_group_share_slots_that_point_through_them(vocabulary):
    picture = picture_of_eight(vocabulary)
    rows = [[picture], [], [picture, picture], [picture]]
    own = picture.soft["image"].index
    T, unused = 30, [60] * 16
    expected = [[*own, *unused], [*own, *(own + len(picture)), *(own + T)]]
    soft = to_batch(rows, Capacities(T, 1, {"image": (24, CONFIG.image.features)}), groups=2).inputs.soft["image"]
    np.testing.assert_array_equal(soft.index, expected)
    with pytest.raises(ValueError, match="row 3 needs .*'image': 24.* room for .*'image': 23"):
        to_batch(rows, Capacities(T, 1, {"image": (23, CONFIG.image.features)}), groups=2)


def test_a_document_larger_than_a_batch_is_refused_with_the_sizes(vocabulary):
    picture = picture_of_eight(vocabulary)
    with pytest.raises(ValueError, match="'image': 8.*'image': 4"):
        Packer(1, 100, 10, {"image": 4}, CONFIG).add(picture)
    with pytest.raises(ValueError, match="'image': 8"):
        Packer(1, 100, 10, {}, CONFIG).add(picture)
    with pytest.raises(ValueError, match="'tokens': 13.*'tokens': 10"):
        Packer(1, 10, 10, {"image": 8}, CONFIG).add(picture)


@pytest.mark.parametrize(("row_length", "targets"), [(16, 16), (16, 5), (7, 100), (500, 500), (2, 1)])
def test_long_text_is_split_and_every_target_stays(vocabulary, row_length, targets):
    parts = tuple(Content(role, (Text("0123456789" * 2),)) for role in ("user", "model") * 2)
    for contents in (parts, (Content("", (Text("0123456789" * 7),)),)):
        whole = encode(Document(contents), vocabulary, CONFIG)
        packer = Packer(100, row_length, targets, {}, CONFIG)
        pieces = packer.split(whole)
        assert all(len(piece) <= row_length and packer.add(piece) for piece in pieces)
        pairs = [(p.ids[t - 1], p.ids[t]) for p in pieces for t in np.flatnonzero(p.target)]
        assert pairs == [(whole.ids[t - 1], whole.ids[t]) for t in np.flatnonzero(whole.target)]
        assert all(p.position.tolist() == list(range(len(p))) for p in pieces)


def test_documents_with_media_branches_or_drawings_are_never_split(vocabulary, codec):
    picture = Image(np.zeros((8, 8, 3), np.uint8))
    documents = [
        Document((Content("user", (picture,)),)),
        Document((Content("user", (Text("0123"),)),), ((Content("model", (Text("4"),)),),)),
        Document((Content("model", (picture,)),)),
    ]
    for document in documents:
        assert len(Packer(1, 4, 4, SOFT, CONFIG).split(encode(document, vocabulary, CONFIG, codec))) == 1


def test_drawn_targets_are_told_from_text(vocabulary, codec):
    batch = single(encode(Document((Content("model", (Text("a"), Image(np.zeros((8, 8, 3), np.uint8)))),)), vocabulary, CONFIG, codec))
    T, D = Modality.TEXT, Modality.DRAW
    assert batch.targets.modality[0].tolist() == [T, T] + [D] * 9 + [T]  # a <draw> eight digits </draw> <end_of_turn>


def test_a_single_sequence_is_a_row_of_its_own_padded_on_request(vocabulary):
    sequence = encode(random_document(np.random.default_rng(3)), vocabulary, CONFIG)
    exact, padded = single(sequence), single(sequence, 200)
    assert exact.inputs.ids.shape == (1, len(sequence)) and (exact.inputs.segment == 1).all()
    assert padded.inputs.ids.shape == (1, 200) and padded.inputs.segment.sum() == len(sequence)
    with pytest.raises(ValueError, match="tokens"):
        single(sequence, 3)
