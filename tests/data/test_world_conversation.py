"""Conversations of the world, against the pixels that they show and the words that they say."""

import importlib.util
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pollux.content import Audio, Content, Document, Image, Text, Video
from pollux.data.world import COLOURS, HELD_OUT, SHAPES, World, WorldConfig, look, speech
from pollux.data.world.conversation import LENGTHS, contents
from pollux.data.world.scene import CELLS, GRID
from pollux.data.world.speech import Utterance, voices
from pollux.data.world.tasks import TRANSCRIBE_PROMPTS
from pollux.tokens.interleave import encode
from pollux.tokens.pack import sizes
from pollux.tokens.sequence import Modality
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary

LAST = ("caption", "question", "follow_up", "transcribe", "clip", "clip_follow_up")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(WorldConfig(seed=1, speech_clips=40, speech_workers=1, cache=str(tmp_path_factory.mktemp("speech"))))


def media(turn: Content):
    return [part for part in turn.parts if not isinstance(part, Text)]


def words(turn: Content) -> str:
    return " ".join(part.text for part in turn.parts if isinstance(part, Text))


def exchanges(turns):
    """(user turn, model turn, the picture or clip that the question can be about: the newest shown or drawn)."""
    newest = None
    for user, model in zip(turns[::2], turns[1::2], strict=True):
        newest = next((part for part in media(user) if not isinstance(part, Audio)), newest)
        yield user, model, newest
        newest = next(iter(media(model)), newest)


def answer_from_pixels(question: str, pixels: np.ndarray) -> str | None:
    """What the judge's own reading of the picture says; None for questions that it cannot answer (sizes)."""
    found = look(pixels)
    tokens = question.split()
    named = [f for word in tokens for f in found if word in (f.colour, f.shape)]
    if {"small", "big", "size"} & {*tokens}:
        return None
    if "left" in tokens or "above" in tokens or "higher" in tokens:
        first, second = ((f.cell % GRID, f.cell // GRID) for f in named)
        axis, names = (0, ("left", "middle", "right")) if "left" in tokens else (1, ("top", "middle", "bottom"))
        return f"{names[first[axis]]} and {names[second[axis]]}, {'yes' if first[axis] < second[axis] else 'no'}"
    if "many" in tokens or "count" in tokens:
        return ("zero", "one", "two", "three")[len(found)]
    if "colour" in tokens:
        return named[0].colour
    if "shape" in tokens:
        return named[0].shape
    if "where" in tokens or "place" in tokens:
        return CELLS[named[0].cell]
    colour, shape = ([w for w in tokens if w in names][0] for names in (COLOURS, SHAPES))
    shown = next(f.shape for f in found if f.colour == colour)
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shown}, {'yes' if shown == shape else 'no'}"


def test_answers_about_pictures_follow_from_the_pixels_of_the_newest_picture_however_long_ago_it_was_shown(world):
    checked = Counter()
    for i in range(400):
        document = world.document("conversation", i)
        for user, model, newest in exchanges(document.contents):
            assert media(user) or media(model) or newest is not None, "a question without a medium comes back to one"
            prompt, picture = words(user), newest.source if isinstance(newest, Image) else None
            if picture is not None and not media(model) and not any(isinstance(p, Audio) for p in media(user)):
                if prompt.startswith(("caption", "describe")):
                    seen = Counter(word for f in look(picture) for word in (f.colour, f.shape))
                    assert seen == Counter(w for w in words(model).replace(",", "").split() if w in (*COLOURS, *SHAPES))
                elif (expected := answer_from_pixels(prompt, picture)) is not None:
                    assert words(model) == expected, (i, prompt)
                    checked["shown now" if media(user) else "shown before"] += 1
    assert min(checked["shown now"], checked["shown before"]) > 50


def test_a_conversation_has_two_to_four_turns_of_every_kind_in_any_order_and_at_most_one_drawing(world):
    pairs, lengths = set(), Counter()
    for i in range(600):
        kinds = []
        for user, model, _ in exchanges(world.document("conversation", i).contents):
            assert (user.role, model.role) == ("user", "model") and words(user)
            shown = [type(p).__name__ for p in media(user)]
            kinds.append("draw" if media(model) else shown[0] if shown else "again")
            assert (kinds[-1] == "Audio") == (words(user) in TRANSCRIBE_PROMPTS[:-1])
        lengths[len(kinds)] += 1
        assert kinds.count("draw") <= 1 and kinds[0] != "again"
        pairs |= set(itertools.pairwise(kinds))
    assert lengths.keys() == {2, 3, 4} and min(lengths.values()) > 60
    again = {(medium, "again") for medium in ("Image", "Video", "Audio")}
    assert pairs >= again | set(itertools.permutations(("Image", "Audio", "draw"), 2))
    assert ("draw", "again") not in pairs, "it could be about the drawing as well"


def test_a_recording_is_transcribed_as_what_was_said(world, monkeypatch):
    monkeypatch.setattr(speech, "disguise", lambda rng, clip: clip)  # which no correlation would see through
    pool = world._phrase_pool
    clean = {u.text: pool.clip(n) for n, u in enumerate(pool.utterances)}
    for document in (world.document("conversation", i) for i in range(60)):
        for user, model, _ in exchanges(document.contents):
            for audio in (p for p in media(user) if isinstance(p, Audio)):
                likeness = {
                    text: np.abs(np.correlate(audio.source[::8], clip[::8], "valid")).max() / np.linalg.norm(clip)
                    for text, clip in clean.items()
                    if len(clip) <= len(audio.source)
                }
                assert max(likeness, key=likeness.get) == words(model)


class BlankCodec:
    levels, size = (256, 64), (48, 48)

    def encode(self, images):
        return np.zeros((len(images), 36, 2), np.int32)


def quick_start():
    """The recipe's module; its token settings and row sizes are what conversations have to fit."""
    path = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_kind_of_turn_fits_its_length_and_every_document_a_row_of_the_quick_start_with_all_answers_as_targets(world):
    tokens, rows = quick_start().TOKENS, quick_start().ROWS
    room = {"tokens": rows["row_length"], "targets": rows["targets_per_row"]} | rows["soft_per_batch"]
    vocabulary = Vocabulary(train_bpe(world.text_sample(4000), 640), BlankCodec.levels)
    drawn = 0
    for i in (*range(300), 3526):  # the last has the most targets of many
        document = world.document("conversation", i)
        sequence = encode(document, vocabulary, tokens, BlankCodec())
        need = sizes(sequence)
        assert all(need[name] <= room[name] for name in need), i
        answers = [t for t in document.contents if t.role == "model"]
        texts = sum(len(vocabulary.encode_text(words(t))) for t in answers if not media(t))
        codes = sum(36 * 2 + 2 for t in answers if media(t))  # and the marks around them
        assert need["targets"] == texts + codes + len(answers)  # and the ends of the turns
        drawn += bool((sequence.modality == Modality.DRAW).any())
    assert drawn > 50
    for item in world.items("conversation", 120):
        turns = contents(item.truth, lambda utterance: world._voice("held_out", 0, utterance))
        for turn, user, model in zip(item.truth.turns, turns[::2], turns[1::2], strict=True):
            assert len(encode(Document((user, model)), vocabulary, tokens, BlankCodec())) - 1 <= LENGTHS[turn.kind], turn.kind


def pairs_in(medium) -> set:
    if isinstance(medium, Utterance):
        return {(c, s) for c, s in itertools.product(COLOURS, SHAPES) if f"{c} {s}" in medium.text}
    return set(getattr(medium, "scene", medium).pairs)


@pytest.mark.parametrize("split", ["seen", "held_out"])
def test_only_what_the_last_turn_is_about_is_new_in_a_held_out_item(world, split):
    new = split == "held_out"
    for index, item in enumerate(world.items("conversation", 96, split)):
        last = item.truth.last
        assert bool(pairs_in(last.medium) & HELD_OUT) == new
        assert not any(pairs_in(turn.medium) & HELD_OUT for turn in item.truth.turns if turn.medium is not last.medium)
        for turn in item.truth.turns:
            if isinstance(turn.medium, Utterance):
                assert turn.medium.voice in voices(new and turn is last)
        assert item.unseen_phrasing == (new and index % 2 == 1)
        if last.kind == "transcribe":
            assert (last.exchange.prompt == TRANSCRIBE_PROMPTS[-1]) == item.unseen_phrasing


def test_an_item_asks_the_last_turn_after_true_answers_and_its_kind_is_that_of_the_last_turn(world):
    items = world.items("conversation", 96)
    assert Counter(item.kind for item in items) == dict.fromkeys(LAST, 16)
    shown = {"caption": Image, "question": Image, "transcribe": Audio, "clip": Video}
    for item in items:
        *before, last = item.contents
        assert [c.role for c in before] == ["user", "model"] * (len(before) // 2) and 1 <= len(before) // 2 <= 3 and last.role == "user"
        assert [type(p) for p in media(last)] == ([shown[item.kind]] if item.kind in shown else [])
        again = "Video" if item.kind == "clip_follow_up" else "Image"
        if item.kind not in shown:
            seen = [type(p).__name__ for turn in before for p in media(turn) if not isinstance(p, Audio)]
            assert seen[-1] == again and not any(media(turn) for turn in before[-1:])
        if item.kind in ("question", "follow_up"):
            *_, (_, _, newest) = exchanges((*item.contents, Content("model", (Text(item.answer),))))
            assert answer_from_pixels(words(last), newest.source) in (None, item.answer)


def test_a_follow_up_of_an_item_was_not_answered_before(world):
    attributes = {*COLOURS, *SHAPES}
    for split in ("seen", "held_out"):
        for item in world.items("conversation", 240, split):
            if item.kind == "follow_up" and item.answer in attributes:
                said = [t.exchange for t in item.truth.turns[:-1] if t.medium is item.truth.last.medium]
                asked = {w for w in item.contents[-1].parts[0].text.split() if w in attributes}
                for exchange in said:
                    assert exchange.kind not in ("caption", "colour", "shape", "exists")
                    assert not asked or item.answer not in exchange.answer.split()


def test_a_room_that_cannot_hold_two_turns_is_refused():
    with pytest.raises(ValueError, match="conversation_room 100 must be at least 144"):
        WorldConfig(conversation_room=100)
    small = World(WorldConfig(conversation_room=144))
    assert all(sum(LENGTHS[t.kind] for t in item.truth.turns) <= 144 for item in small.items("conversation", 30))
