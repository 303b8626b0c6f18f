"""Scenes, their pictures and the judge of drawings."""

import dataclasses

import numpy as np
import pytest

from pollux.data.world.checker import judge, look
from pollux.data.world.render import render
from pollux.data.world.scene import CELLS, COLOURS, HELD_OUT, SHAPES, SceneConfig, sample_scene, stream

CONFIG = SceneConfig()


def scenes(count, held_out, config=CONFIG, key="test"):
    return [sample_scene(stream(7, key, i), config, held_out) for i in range(count)]


def test_six_pairs_are_held_out_each_shape_once_and_no_colour_twice():
    colours, shapes = zip(*HELD_OUT, strict=True)
    assert sorted(shapes) == sorted(SHAPES) and len(set(colours)) == len(HELD_OUT) == 6 and len(COLOURS) == 8


def test_training_scenes_have_no_held_out_pair_and_held_out_scenes_have_one_each():
    assert not any(s.held_out for s in scenes(3000, False))
    assert all(s.held_out for s in scenes(1000, True))


def test_objects_of_a_scene_differ_in_cell_colour_and_shape_and_come_in_reading_order():
    for scene in scenes(500, False) + scenes(500, True):
        for attribute in ("cell", "colour", "shape"):
            values = [getattr(t, attribute) for t in scene.things]
            assert len(set(values)) == len(values)
        assert [t.cell for t in scene.things] == sorted(t.cell for t in scene.things)


def test_every_training_pair_cell_and_count_occurs():
    things = [t for s in scenes(4000, False) for t in s.things]
    assert len({(t.colour, t.shape) for t in things}) == 42
    assert {t.place for t in things} == set(CELLS)
    assert {len(s.things) for s in scenes(100, False)} == {1, 2, 3}


def test_a_picture_is_a_pure_function_of_its_key_in_any_order():
    first = [render(s) for s in scenes(20, False)]
    again = [render(sample_scene(stream(7, "test", i), CONFIG, False)) for i in reversed(range(20))]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert not np.array_equal(first[0], render(sample_scene(stream(8, "test", 0), CONFIG, False)))


def test_a_clear_pixel_at_the_centre_of_a_filled_shape_has_its_colour():
    for scene in scenes(50, False, SceneConfig(noise=0.0, max_objects=1)):
        thing = scene.things[0]
        if thing.shape != "ring":
            wanted = np.clip(np.array(COLOURS[thing.colour]) * thing.brightness, 0, 255)
            assert np.abs(render(scene)[int(thing.y), int(thing.x)] - wanted).max() <= 1


def test_covered_area_follows_from_plane_geometry():
    r = 7.5
    exact = {
        "circle": np.pi * (0.95 * r) ** 2,
        "ring": np.pi * ((1.02 * r) ** 2 - (0.52 * r) ** 2),
        "square": (1.7 * r) ** 2,
        "triangle": 3 * np.sqrt(3) / 4 * (1.25 * r) ** 2,
        "cross": 2 * 2.2 * r * 0.66 * r - (0.66 * r) ** 2,
        "star": 5 * 1.25 * r * 0.53 * r * np.sin(np.pi / 5),
    }
    base = scenes(1, False, SceneConfig(noise=0.0, max_objects=1, contrast=0.0))[0]
    for shape, area in exact.items():
        thing = dataclasses.replace(base.things[0], shape=shape, colour="green", brightness=1.0, cell=4, x=24.3, y=23.6, radius=r)
        image = render(dataclasses.replace(base, things=(thing,))).astype(float)
        ground = image[0, 0]
        towards = COLOURS["green"] - ground
        covered = ((image - ground) @ towards / (towards @ towards)).sum()
        assert covered == pytest.approx(area, rel=0.03), shape


def test_judge_accepts_true_pictures():
    matches, spurious = [], 0
    for scene in scenes(250, False) + scenes(250, True):
        verdict = judge(render(scene), scene.things)
        matches += verdict.matches
        spurious += verdict.spurious
    assert np.mean([m.right for m in matches]) >= 0.99
    assert np.mean([m.size for m in matches]) >= 0.99
    assert spurious <= 2


def test_judge_rejects_a_swapped_colour_shape_or_cell_a_missing_object_and_an_extra_one():
    rng = np.random.default_rng(0)
    for scene in scenes(60, True):
        picture, thing = render(scene), scene.things[0]
        wrong_shape = dataclasses.replace(thing, shape=str(rng.choice([s for s in SHAPES if s != thing.shape])))
        match = judge(picture, (wrong_shape, *scene.things[1:])).matches[0]
        assert match.cell and match.colour and not match.shape and not match.right
        wrong_colour = dataclasses.replace(thing, colour=str(rng.choice([c for c in COLOURS if c != thing.colour])))
        match = judge(picture, (wrong_colour, *scene.things[1:])).matches[0]
        assert match.cell and match.shape and not match.colour and not match.right
        free = int(rng.choice([c for c in range(9) if c not in {t.cell for t in scene.things}]))
        verdict = judge(picture, (dataclasses.replace(thing, cell=free), *scene.things[1:]))
        assert not verdict.matches[0].right and verdict.spurious == 1
        assert judge(picture, scene.things[1:]).spurious == 1
    assert not judge(render(dataclasses.replace(scene, things=())), scene.things).matches[0].cell


def test_judge_sees_nothing_in_an_empty_gradient_and_no_shape_in_a_smear():
    empty = [render(dataclasses.replace(s, things=())) for s in scenes(40, False)]
    assert not any(look(picture) for picture in empty)
    smear = empty[0].copy()
    smear[20:24, 6:42] = COLOURS["red"]
    assert [(f.colour, f.shape) for f in look(smear)] == [("red", "")]


def test_judge_survives_a_blur_of_a_pixel():
    kernel, good, total = np.array([0.25, 0.5, 0.25]), 0, 0
    for scene in scenes(100, True):
        soft = render(scene).astype(float)
        for axis in (0, 1):
            soft = np.apply_along_axis(lambda line: np.convolve(np.pad(line, 1, mode="edge"), kernel, "valid"), axis, soft)
        matches = judge(soft.astype(np.uint8), scene.things).matches
        good, total = good + sum(m.right for m in matches), total + len(matches)
    assert good / total >= 0.95


def test_wrong_settings_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="objects per scene"):
        SceneConfig(min_objects=3, max_objects=2)
    with pytest.raises(ValueError, match="square RGB picture"):
        look(np.zeros((48, 40, 3), np.uint8))
