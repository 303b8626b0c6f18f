"""The world as documents and evaluation items."""

import dataclasses
import re

import numpy as np
import pytest

from pollux.content import Audio, Document, FunctionCall, FunctionResponse, Image, Text, Video
from pollux.data.world import COLOURS, EVALUATIONS, HELD_OUT, SHAPES, TASKS, World, WorldConfig, look, watch
from pollux.data.world.speech import voices
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import decode_parts, encode
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(WorldConfig(seed=1, speech_clips=8, question_clips=90, speech_workers=1, cache=str(tmp_path_factory.mktemp("speech"))))


def turns(document):
    return [*document.contents, *(turn for branch in document.branches for turn in branch)]


def parts(document, kind):
    return [p for turn in turns(document) for p in turn.parts if isinstance(p, kind)]


def fingerprint(document: Document):
    """Everything in a document as comparable values."""

    def value(part):
        match part:
            case Text():
                return part.text
            case FunctionCall() | FunctionResponse():
                return part
            case Video():
                sound = part.source.audio
                return part.source.frames.tobytes(), None if sound is None else sound.tobytes()
            case _:
                return part.source.tobytes()

    return [(t.role, [value(p) for p in t.parts]) for t in turns(document)], document.align


@pytest.mark.parametrize("task", TASKS)
def test_documents_are_a_pure_function_of_task_and_index_in_any_order(world, task):
    forward = [fingerprint(world.document(task, i)) for i in range(6)]
    backward = [fingerprint(World(world.config).document(task, i)) for i in reversed(range(6))]
    assert forward == backward[::-1]
    assert len({str(f) for f in forward}) == 6


def named_pairs(text):
    """Pairs of colour and shape that a text gives to one object ("the red one" and "the star" may be two objects)."""
    for piece in re.split(", | then |: ", text):
        words = piece.split()
        colours, shapes = [w for w in words if w in COLOURS], [w for w in words if w in SHAPES]
        if len(colours) == len(shapes) == 1 and "one" not in words:
            yield colours[0], shapes[0]


@pytest.mark.parametrize(("task", "count"), [("picture", 2000), ("clip", 1000), ("draw", 2500), ("film", 1000), ("conversation", 1500)])
def test_no_held_out_pair_is_named_in_thousands_of_training_documents(world, task, count):
    world = World(dataclasses.replace(world.config, word_lists=0.0))  # lists of words describe nothing
    pairs = {pair for i in range(count) for text in parts(world.document(task, i), Text) for pair in named_pairs(text.text)}
    assert len(pairs) == 42 and not pairs & HELD_OUT


@pytest.mark.parametrize(
    ("task", "count"),
    [("picture", 60), ("draw", 40), ("film", 10), ("few_shot", 20), ("spoken_question", 20), ("clip", 20), ("conversation", 40)],
)
def test_no_held_out_pair_is_seen_in_the_pixels_of_training_documents(world, task, count):
    for i in range(count):
        document = world.document(task, i)
        pictures = [p.source for p in parts(document, Image)] + [p.source.frames[0] for p in parts(document, Video)]
        seen = {(f.colour, f.shape) for picture in pictures for f in look(picture)}
        assert bool(seen) == bool(pictures) and not seen & HELD_OUT


@pytest.mark.parametrize("task", EVALUATIONS)
def test_every_held_out_item_with_media_holds_a_held_out_pair_and_no_seen_item_does(world, task):
    for split in ("seen", "held_out"):
        for item in world.items(task, 16, split):
            if task in ("speech", "spoken_question"):
                utterance = item.truth if task == "speech" else item.truth[1]
                assert utterance.voice in voices(split == "held_out")
            if task == "speech":
                pairs = {(c, s) for c in COLOURS for s in SHAPES if f"{c} {s}" in item.answer}
                assert bool(pairs & HELD_OUT) == (split == "held_out")
            elif task not in ("arithmetic", "story", "conversation"):
                truth = item.truth[0] if task == "spoken_question" else item.truth
                assert truth.held_out == (split == "held_out")


def test_items_take_turns_of_kind_and_half_of_the_held_out_ones_are_phrased_anew(world):
    items = world.items("vqa", 64)
    kinds = [i.kind for i in items]
    assert {kinds.count(k) for k in set(kinds)} == {8} and len(set(kinds)) == 8
    assert sum(i.unseen_phrasing for i in items) == 32 and not any(i.unseen_phrasing for i in world.items("vqa", 8, "seen"))
    assert {i.kind for i in world.items("clip", 16)} >= {"direction", "before_after", "sound"}


def test_a_prompt_of_an_item_looks_like_the_training_document(world):
    def shape(contents):
        return [(c.role, [type(p) for p in c.parts]) for c in contents]

    for task, evaluation in (
        ("picture", "vqa"),
        ("clip", "clip"),
        ("speech", "speech"),
        ("spoken_question", "spoken_question"),
        ("draw", "draw"),
    ):
        layouts = []
        for i in range(30):
            document = world.document(task, i)
            branch = document.branches[0] if document.branches else ()
            layouts.append(shape([*document.contents, *branch][:-1]))
        assert all(shape(item.contents) in layouts for item in world.items(evaluation, 4)), task


def test_every_answer_is_a_model_turn_and_media_have_their_declared_form(world):
    for task in TASKS:
        document = world.document(task, 3)
        assert all(t.role == "model" for t in (b[-1] for b in document.branches))
        assert document.branches or document.contents[-1].role in ("model", "")
        for image in parts(document, Image):
            assert image.source.shape == (48, 48, 3) and image.source.dtype == np.uint8
        for audio in parts(document, Audio):
            assert audio.rate == 16_000 and audio.source.dtype == np.float32 and np.sqrt(np.mean(audio.source**2)) > 0.005
        for video in parts(document, Video):
            assert video.source.frames.shape == (6, 48, 48, 3) and list(video.source.times) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert [t.role for t in world.document("draw", 0).contents] == ["user", "model"]
    assert [type(p) for p in world.document("draw", 0).contents[-1].parts] == [Image]


def test_a_film_shows_what_its_request_says_in_pictures_of_the_same_objects(world):
    """By the judge, which knows nothing of the renderer. Half of the requests name what is to be seen first, and where."""
    described = 0
    for i in range(60):
        document = world.document("film", i)
        request = document.contents[0].parts[0].text.partition(": ")[2]
        frames = np.stack([part.source for part in document.contents[-1].parts])
        assert [turn.role for turn in document.contents] == ["user", "model"] and frames.shape == (6, 48, 48, 3)
        *start, moves = request.split(", ")
        assert " then ".join(map(str, watch(frames))) == moves
        if start:
            described += 1
            assert ", ".join(f"a {found}" for found in look(frames[0])) == ", ".join(start)
        for frame in frames[1:]:
            assert {(f.colour, f.shape) for f in look(frame)} == {(f.colour, f.shape) for f in look(frames[0])}
    assert 15 < described < 45


class Mosaic:
    """The mean colour of every 8 x 8 pixels, in 16 steps a channel."""

    levels = (16, 16, 16)
    size = (48, 48)

    def encode(self, pixels):
        return (pixels.reshape(-1, 6, 8, 6, 8, 3).mean((2, 4)) // 16).astype(np.int32).reshape(-1, 36, 3)

    def decode(self, codes):
        tiles = (codes * 16 + 8).astype(np.uint8).reshape(-1, 6, 1, 6, 1, 3)
        return np.broadcast_to(tiles, (len(codes), 6, 8, 6, 8, 3)).reshape(-1, 48, 48, 3)


def test_what_a_model_learns_of_a_film_are_its_frames_one_after_another(world):
    codec = Mosaic()
    vocabulary = Vocabulary(train_bpe(world.text_sample(50), 300), codec.levels)
    document = world.document("film", 3)
    sequence = encode(document, vocabulary, TokensConfig(), codec)
    learned = sequence.ids[sequence.target > 0]
    assert len(learned) == 6 * (36 * 3 + 2) + 1
    drawn = np.stack([part.source for part in decode_parts(learned, vocabulary, codec)])
    frames = np.stack([part.source for part in document.contents[-1].parts])
    means = [one.reshape(6, 6, 8, 6, 8, 3).mean((2, 4)) for one in (drawn, frames)]
    assert np.abs(means[0] - means[1]).max() <= 8


def test_the_contrastive_text_is_given_on_the_asked_share(world):
    aligned = World(WorldConfig(seed=1, align_share=1.0, single_turn_share=0.0))
    assert world.document("picture", 0).align is None
    assert re.match("a (small|big) ", aligned.document("picture", 0).align)


def test_text_for_the_tokenizer_holds_every_word_of_the_documents(world):
    """But for those whose words have no end, and films, which the quick start does not show."""
    words = {w for text in world.text_sample(12_000) for w in re.findall("[a-z]+", text)}
    documents = {
        w
        for task in set(TASKS) - {"call", "talk", "film"}
        for i in range(150)
        for text in parts(world.document(task, i), Text)
        for w in re.findall("[a-z]+", text.text)
    }
    assert documents <= words and len(words) < 150


def test_chance_is_what_a_blind_guess_reaches(world):
    vqa = world.chance("vqa", 1600)
    assert vqa.keys() == {"colour", "shape", "size", "place", "count", "exists", "left_of", "above"}
    assert 0.4 < vqa["size"] < 0.65 and 0.4 < vqa["left_of"] < 0.65 and 0.1 < vqa["colour"] < 0.3 and 0.05 < vqa["place"] < 0.25
    assert 0.2 < world.chance("clip", 1600)["direction"] < 0.36
    assert world.chance("draw", 400)["one"] < 0.05
    assert world.chance("clip", 1600)["before_after"] > 0.45  # of an answer with facts first, the verdict alone
    assert world.chance("conversation", 1600)["follow_up"] > 0.25


def test_wrong_names_are_refused_with_what_would_be_right(world):
    with pytest.raises(ValueError, match="task 'paint' must be one of picture"):
        world.document("paint", 0)
    with pytest.raises(ValueError, match="evaluation task 'paint' must be one of caption"):
        world.items("paint", 1)
    with pytest.raises(ValueError, match="split 'test' must be one of seen, held_out"):
        world.items("vqa", 1, "test")
    with pytest.raises(ValueError, match="question_clips 5 must be at least"):
        World(WorldConfig(question_clips=5)).document("spoken_question", 0)
