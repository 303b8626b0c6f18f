"""What the world says: every answer is recomputed here from the text of the question and the truth alone."""

import itertools
import re

import numpy as np
import pytest

from pollux.data.world import clips, few_shot, grammar, stories
from pollux.data.world.scene import CELLS, COLOURS, HELD_OUT, SHAPES, SceneConfig, sample_scene, stream

CONFIG = SceneConfig()
ROWS = {name: 0 if "top" in name else 2 if "bottom" in name else 1 for name in CELLS}
COLUMNS = {name: 0 if "left" in name else 2 if "right" in name else 1 for name in CELLS}
NUMBER_WORDS = ["zero", "one", "two", "three"]


def scenes(count, held_out=False):
    return [sample_scene(stream(3, "language", i), CONFIG, held_out) for i in range(count)]


def mentioned(text, things):
    """The things that a text refers to by "the COLOUR one" or "the SHAPE", in the order of the text."""
    names = re.findall(r"the (\w+)", text)
    return [t for name in names for t in things if name in (t.colour, t.shape)]


def answer_about_scene(question, scene):
    words, things = question.split(), scene.things
    if "many" in words or "count" in words:
        sizes = [s for s in ("small", "big") if s in words]
        return NUMBER_WORDS[sum(not sizes or t.size in sizes for t in things)]
    about = mentioned(question, things)
    if len(about) == 2:
        first, second = (t.place for t in about)
        table, names = (COLUMNS, ["left", "middle", "right"]) if "left" in words else (ROWS, ["top", "middle", "bottom"])
        verdict = "yes" if table[first] < table[second] else "no"
        return f"{names[table[first]]} and {names[table[second]]}, {verdict}"
    if not about:
        colour = next(w for w in words if w in COLOURS)
        shape = next(w for w in words if w in SHAPES)
        shown = next(t.shape for t in things if t.colour == colour)
        return f"{'an' if colour == 'orange' else 'a'} {colour} {shown}, {'yes' if shown == shape else 'no'}"
    return next(
        getattr(about[0], a) for a, key in dict(colour="colour", shape="shape", size="size", place="where").items() if {a, key} & {*words}
    )


@pytest.mark.parametrize("held_out", [False, True])
def test_answers_about_scenes_follow_from_the_truth(held_out):
    rng = np.random.default_rng(0)
    for scene in scenes(400, held_out):
        for kind in grammar.kinds_for(scene):
            exchange = grammar.ask(rng, scene, kind, unseen=bool(rng.integers(2)), held_out=held_out)
            assert exchange.answer == answer_about_scene(exchange.prompt, scene), exchange


def test_yes_and_no_are_balanced_and_a_wrong_pair_shares_its_colour_with_an_object():
    rng = np.random.default_rng(0)
    answers = {"exists": [], "left_of": [], "above": []}
    for scene in scenes(1500):
        for kind in {*answers} & {*grammar.kinds_for(scene)}:
            exchange = grammar.ask(rng, scene, kind)
            answers[kind].append(exchange.verdict == "yes")
            assert exchange.answer == f"{exchange.facts}, {exchange.verdict}" and exchange.verdict in ("yes", "no")
            if kind == "exists":
                assert {*exchange.prompt.split()} & {t.colour for t in scene.things}
    assert all(0.45 < np.mean(values) < 0.55 and len(values) > 500 for values in answers.values())


def test_a_caption_states_every_attribute_of_every_object_in_each_style():
    for scene in scenes(50):
        for style in grammar.STYLES:
            parts = grammar.describe(scene, style).split(", ")
            for part, thing in zip(parts, scene.things, strict=True):
                words = [w for w in part.split() if w != "a"]
                assert sorted(words) == sorted([thing.size, thing.colour, thing.shape, *thing.place.split()])


def test_a_listing_is_a_caption_in_any_order_of_the_objects():
    rng, moved = np.random.default_rng(0), 0
    for scene in scenes(200):
        for exchange in grammar.listings(rng, scene, 4):
            style = next(s for s in sorted(grammar.STYLES, key=len, reverse=True) if exchange.prompt.endswith(s))
            in_order = grammar.describe(scene, style)
            assert sorted(exchange.answer.split(", ")) == sorted(in_order.split(", "))
            moved += exchange.answer != in_order
    assert moved > 200


def test_styles_put_the_shape_before_the_colour_as_often_as_after_it():
    scene = scenes(1)[0]
    colour, shape = scene.things[0].colour, scene.things[0].shape
    first = [grammar.describe(scene, s) for s in grammar.STYLES]
    assert sum(text.index(shape) < text.index(colour) for text in first) == len(first) / 2


def all_words(phrasings):
    return {w for text in phrasings for w in re.sub(r"\{\w+\}", "", text).split()}


def test_evaluation_phrasings_are_new_but_made_of_words_seen_in_training():
    lists = [grammar.CAPTION_PROMPTS, grammar.DRAW_PROMPTS, clips.CAPTION_PROMPTS, *grammar.QUESTIONS.values(), *clips.QUESTIONS.values()]
    seen = all_words(itertools.chain.from_iterable(phrasings[:-1] for phrasings in lists))
    for phrasings in lists:
        assert phrasings[-1] not in phrasings[:-1] and all_words(phrasings[-1:]) <= seen


def test_training_questions_use_training_phrasings_only():
    rng = np.random.default_rng(0)
    patterns = [re.compile(re.sub(r"\\\{\w\\\}", ".+", re.escape(p[-1])) + "$") for k, p in grammar.QUESTIONS.items() if k != "exists"]
    for scene in scenes(300):
        for exchange in grammar.questions(rng, scene, 6):
            assert not any(p.match(exchange.prompt) for p in patterns), exchange
            assert not re.match("is there .+ here$", exchange.prompt)


def test_spoken_questions_are_all_listed_and_only_evaluation_names_held_out_pairs():
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        listed = set(grammar.spoken_sentences(held_out))
        assert {grammar.ask_aloud(rng, s, held_out).prompt for s in scenes(500, held_out)} <= listed
    assert {f"{c} {s}" for c, s in HELD_OUT} == {
        q[len("is there a") :].lstrip("n").strip() for q in listed - set(grammar.spoken_sentences(False))
    }


def answer_about_clip(question, clip, positions):
    """From frame-by-frame positions {colour: [(x, y) per frame]}, not from the clip's own words."""
    words = question.split()
    shape_of = {t.colour: t.shape for t in clip.order}
    begins = {c: next(i for i in range(5) if p[i] != p[i + 1]) for c, p in positions.items()}
    about = [t.colour for t in mentioned(question, clip.order)]
    if "first" in words or "last" in words:
        return (min if "first" in words else max)(begins, key=begins.get)
    if {"before", "after"} & {*words}:
        leader = min(begins, key=begins.get)
        return f"{leader} {shape_of[leader]} first, {'yes' if leader == about[0 if 'before' in words else 1] else 'no'}"
    if "colour" in words:
        return about[0]
    if "shape" in words:
        return shape_of[about[0]]
    (x0, y0), (x1, y1) = positions[about[0]][0], positions[about[0]][-1]
    start, end = (CELLS[3 * int(y * 4 // 16) + int(x * 4 // 16)] for x, y in ((x0, y0), (x1, y1)))
    verdict = ("left" if x1 < x0 else "right") if x0 != x1 else ("up" if y1 < y0 else "down")
    return f"{start} to {end}, {verdict}"


def test_answers_about_clips_follow_from_where_the_pixels_are():
    rng = np.random.default_rng(0)
    config = SceneConfig(noise=0.0, contrast=0.0)
    for i in range(60):
        clip = clips.sample_clip(stream(3, "clip", i), config, i % 2 == 1, 0.5)
        frames = clips.render_clip(clip).frames.astype(float)
        positions = {}
        for thing in clip.order:
            near = np.linalg.norm(frames - np.array(COLOURS[thing.colour]) * thing.brightness, axis=-1) < 40
            positions[thing.colour] = [tuple(np.round(np.argwhere(f).mean(0)[::-1] / 4)) for f in near]
        for kind in {*clips.clip_kinds(clip)} - {"sound", "sound_with"}:
            exchange = clips.ask_clip(rng, clip, kind, unseen=bool(rng.integers(2)))
            assert exchange.answer == answer_about_clip(exchange.prompt, clip, positions), exchange
        assert clip.held_out == (i % 2 == 1)


def test_a_move_is_one_cell_in_two_steps_and_objects_never_move_together():
    for i in range(100):
        clip = clips.sample_clip(stream(4, i), CONFIG, False, 0.0)
        moving = []
        for number, thing in enumerate(clip.order):
            path = np.array([(t.x, t.y) for t in (clips.at_frame(clip, number, thing, f) for f in range(clips.FRAMES))])
            steps = np.abs(np.diff(path, axis=0)).sum(1)
            assert sorted(steps.round(6)) == [0, 0, 0, 8, 8] and 0 < path[-1].min() and path[-1].max() < 48
            moving.append(steps > 1)
        assert not (moving[0] & moving[1]).any()


def test_the_sound_has_the_pitch_and_falls_into_the_move_that_the_answers_say():
    rng = np.random.default_rng(0)
    for i in range(20):
        clip = clips.sample_clip(stream(5, i), CONFIG, False, 1.0)
        sound = clips.render_sound(clip)
        assert sound.dtype == np.float32 and len(sound) == 48_000
        loud = np.array([np.sqrt(np.mean(second**2)) for second in sound.reshape(6, 8000)]) > 0.02
        heard = clips.ask_clip(rng, clip, "sound_with").answer
        begin = clip.start + 2 * [t.colour for t in clip.order].index(heard)
        assert list(np.flatnonzero(loud)) == [begin, begin + 1]
        spectrum = np.abs(np.fft.rfft(sound))
        peak = np.fft.rfftfreq(len(sound), 1 / 16_000)[spectrum.argmax()]
        assert clips.ask_clip(rng, clip, "sound").answer == ("high tone" if peak > 1000 else "low noise")


def test_a_clip_has_enough_different_questions():
    rng = np.random.default_rng(0)
    for i in range(50):
        asked = clips.clip_questions(rng, clips.sample_clip(stream(6, i), CONFIG, False, 0.5), 8)
        assert len({e.prompt for e in asked}) == len(asked) >= 7


def test_a_few_questions_about_clips_are_of_every_kind():
    rng = np.random.default_rng(0)
    kinds = {e.kind for i in range(60) for e in clips.clip_questions(rng, clips.sample_clip(stream(6, i), CONFIG, False, 0.5), 2)}
    assert kinds == {*clips.QUESTIONS}


def test_the_label_of_a_made_up_word_follows_from_the_examples():
    games = [few_shot.sample_few_shot(stream(7, i), CONFIG, i % 2 == 1) for i in range(400)]
    for i, game in enumerate(games):
        *examples, query = [s.things[0] for s in game.scenes]
        assert query_is_held_out(query) == (i % 2 == 1) and not any(query_is_held_out(t) for t in examples)
        if game.kind == "word":
            alike = [label for t, label in zip(examples, game.labels, strict=False) if t.colour == query.colour or t.shape == query.shape]
            assert alike == [game.labels[-1]]
        else:
            assert {*game.labels[-1].split()} <= {query.colour, query.shape}


def query_is_held_out(thing):
    return (thing.colour, thing.shape) in HELD_OUT


def test_sums_and_stories_are_right():
    rng = np.random.default_rng(0)
    for _ in range(300):
        exchange = stories.arithmetic(rng)
        assert str(eval(exchange.prompt.rstrip("= "))) == exchange.answer
        exchange = stories.story(rng)
        *sentences, question = exchange.prompt.split(", ")
        state = {}
        for sentence in sentences:
            words = sentence.split()
            if "has" in words or "went" in words:
                subject, value = (" ".join(words[3:]), words[0]) if "has" in words else (words[0], words[-1])
            else:
                subject, value = " ".join(words[3:5]), words[-1]
                assert state[subject] == words[0], "only an owner can give"
            state[subject] = value
        assert state[re.sub("^who has the |^where is ", "", question)] == exchange.answer
