"""Clips of the world: two objects, one moves by a cell, then the other; sometimes one of the moves makes a sound. The model watches them,
or draws them frame by frame.

Six frames at two frames a second. What happened and in which order is known, so questions and their answers follow.
Legend: F frames, H = W canvas in pixels, n samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pollux.data.world import grammar
from pollux.data.world.grammar import Exchange, phrase, refer
from pollux.data.world.noise import normal
from pollux.data.world.render import add_noise, background, paint
from pollux.data.world.scene import CELLS, GRID, Scene, SceneConfig, Thing, make_scene, place_thing, sample_pairs
from pollux.media import VideoArray

FPS = 2.0
FRAMES = 6
RATE = 16_000  # Hz
STEPS = 2  # frames that one move takes
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SOUNDS = ("high tone", "low noise")

CAPTION_PROMPTS = ("what happens", "tell what happens", "what happens here", "tell what happens here")
FILM_PROMPTS = ("show a film: {what}", "draw a film: {what}", "paint a film: {what}", "show the film: {what}")
QUESTIONS: dict[str, tuple[str, ...]] = {
    "direction": ("which way did {a} move", "{a} moved which way", "where did {a} move", "say where {a} moved", "{a} moved where"),
    "first": (
        "which one moved first",
        "what moved first",
        "the first to move was what",
        "say what moved first",
        "the first to move was which one",
    ),
    "last": (
        "which one moved last",
        "the last to move was what",
        "the last to move was which one",
        "say which one moved last",
        "what moved last",
    ),
    "before_after": (
        "did {a} move {when} {b}",
        "was it {a} that moved {when} {b}",
        "{a} moved {when} {b} yes or no",
        "say if {a} moved {when} {b}",
        "did {a} move {when} {b} yes or no",
    ),
    "colour": grammar.QUESTIONS["colour"],
    "shape": grammar.QUESTIONS["shape"],
    "sound": ("what sound is there", "which sound is there", "what sound is here", "which sound is here"),
    "sound_with": (
        "which one moved with the sound",
        "what moved with the sound",
        "the sound was with what",
        "the sound was with which one",
    ),
}
_ALWAYS = ("direction", "first", "last", "before_after", "colour", "shape")


@dataclass(frozen=True)
class Clip:
    """The truth of one clip. `scene` shows the start; its things are in reading order, `order` in order of movement."""

    scene: Scene
    order: tuple[Thing, Thing]
    directions: tuple[str, str]  # of the first and the second mover
    start: int  # the frame after which the first move begins
    sound: str  # one of SOUNDS, or "" for a silent clip
    sound_move: int  # 0 or 1: the move that it accompanies

    @property
    def held_out(self) -> bool:
        return self.scene.held_out


def sample_clip(rng: np.random.Generator, config: SceneConfig, held_out: bool, sound_share: float) -> Clip:
    """A random clip; the four cells where the two moves start and end are all different."""
    pairs = sample_pairs(rng, 2, held_out)
    while True:
        directions = tuple(tuple(DIRECTIONS)[i] for i in rng.integers(len(DIRECTIONS), size=2))
        starts = [int(c) for c in rng.permutation(GRID * GRID)[:2]]
        ends = [_moved(c, d) for c, d in zip(starts, directions, strict=True)]
        if None not in ends and len({*starts, *ends}) == 4:
            break
    movers = tuple(place_thing(rng, config, p, c) for p, c in zip(pairs, starts, strict=True))
    return Clip(
        scene=make_scene(rng, config, tuple(sorted(movers, key=lambda t: t.cell))),
        order=(movers[0], movers[1]),
        directions=(directions[0], directions[1]),
        start=int(rng.integers(FRAMES - 2 * STEPS)),
        sound=SOUNDS[rng.integers(len(SOUNDS))] if rng.random() < sound_share else "",
        sound_move=int(rng.integers(2)),
    )


def _moved(cell: int, direction: str) -> int | None:
    """The neighbouring cell, None outside the grid."""
    dx, dy = DIRECTIONS[direction]
    column, row = cell % GRID + dx, cell // GRID + dy
    return row * GRID + column if 0 <= column < GRID and 0 <= row < GRID else None


def render_clip(clip: Clip) -> VideoArray:
    """Frames uint8 [F, H, W, 3] with their times and, if there is a sound, float32 [n] at 16 kHz."""
    ground = background(clip.scene)
    frames = np.empty((FRAMES, *ground.shape), np.float32)
    for index in range(FRAMES):
        frames[index] = ground
        for number, thing in enumerate(clip.order):
            paint(frames[index], at_frame(clip, number, thing, index))
    pixels = add_noise(frames, clip.scene.noise, clip.scene.noise_seed)
    times = np.arange(FRAMES) / FPS
    return VideoArray(pixels, times, render_sound(clip), RATE) if clip.sound else VideoArray(pixels, times)


def at_frame(clip: Clip, number: int, thing: Thing, index: int) -> Thing:
    """The mover `number` as it stands in frame `index`."""
    done = min(max(index - clip.start - number * STEPS, 0), STEPS) / STEPS * clip.scene.canvas / GRID
    dx, dy = DIRECTIONS[clip.directions[number]]
    return replace(thing, x=thing.x + dx * done, y=thing.y + dy * done)


def render_sound(clip: Clip) -> np.ndarray:
    """A high tone or a low rumble during one of the moves, over faint noise: float32 [n] in [-1, 1] at 16 kHz."""
    rng = np.random.default_rng(clip.scene.noise_seed)
    samples = 0.003 * normal((round(FRAMES / FPS * RATE),), clip.scene.noise_seed)
    first = round((clip.start + clip.sound_move * STEPS) / FPS * RATE)
    length = round(STEPS / FPS * RATE)
    if clip.sound == "high tone":
        pitch = rng.uniform(1500, 2500)  # Hz
        wave = np.sin(2 * np.pi * pitch / RATE * np.arange(length, dtype=np.float32))
    else:
        spectrum = np.fft.rfft(rng.standard_normal(length, dtype=np.float32))
        spectrum[np.fft.rfftfreq(length, 1 / RATE) > rng.uniform(200, 400)] = 0
        wave = np.fft.irfft(spectrum, length)
        wave *= np.sqrt(0.5 / np.mean(wave**2))
    fade = np.minimum(1, np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.02 * RATE))
    samples[first : first + length] += (rng.uniform(0.1, 0.3) * fade * wave).astype(np.float32)
    return np.clip(samples, -1, 1)


def describe_clip(clip: Clip) -> str:
    """For example: the red circle moved left then the blue star moved up."""
    return " then ".join(f"the {t.colour} {t.shape} moved {d}" for t, d in zip(clip.order, clip.directions, strict=True))


def clip_caption(rng: np.random.Generator, clip: Clip, unseen: bool = False) -> Exchange:
    return Exchange("caption", phrase(rng, CAPTION_PROMPTS, unseen), describe_clip(clip))


def film_request(rng: np.random.Generator, clip: Clip, unseen: bool = False) -> str:
    """A request to draw the clip: what moves, and in half of them first what is to be seen at the start and where."""
    start = f"{grammar.describe(clip.scene)}, " if rng.random() < 0.5 else ""
    return phrase(rng, FILM_PROMPTS, unseen).format(what=start + describe_clip(clip))


def clip_kinds(clip: Clip) -> tuple[str, ...]:
    """The kinds of question that this clip allows."""
    return (*_ALWAYS, "sound", "sound_with") if clip.sound else _ALWAYS


def clip_questions(rng: np.random.Generator, clip: Clip, count: int) -> list[Exchange]:
    """`count` different training questions: every allowed kind once, in any order, then more of directions, order, colours and shapes."""
    asked: dict[str, Exchange] = {}
    allowed = clip_kinds(clip)
    kinds = [*(allowed[i] for i in rng.permutation(len(allowed))), "direction", "before_after", "direction", "colour", "shape"]
    for kind in kinds:
        exchange = ask_clip(rng, clip, kind)
        asked.setdefault(exchange.prompt, exchange)
    return list(asked.values())[:count]


def ask_clip(rng: np.random.Generator, clip: Clip, kind: str, unseen: bool = False) -> Exchange:
    """One question of this kind. Raises ValueError for a kind that this clip does not allow."""
    if kind not in clip_kinds(clip):
        raise ValueError(f"question kind {kind!r} must be one of {', '.join(clip_kinds(clip))} for this clip")
    number = int(rng.integers(2))
    thing, other, leader = clip.order[number], clip.order[1 - number], clip.order[0]
    end = _moved(thing.cell, clip.directions[number])
    assert end is not None
    path = f"{thing.place} to {CELLS[end]}"
    order = f"{leader.colour} {leader.shape} first"
    when = ("before", "after")[rng.integers(2)]
    named = {"a": refer(rng, thing), "b": refer(rng, other), "when": when}
    names, facts, verdict = {
        "direction": (lambda: ({"a": refer(rng, thing)}, path, clip.directions[number])),
        "first": (lambda: ({}, "", leader.colour)),
        "last": (lambda: ({}, "", clip.order[1].colour)),
        "before_after": (lambda: (named, order, "yes" if (number == 0) == (when == "before") else "no")),
        "colour": (lambda: ({"a": f"the {thing.shape}"}, "", thing.colour)),
        "shape": (lambda: ({"a": f"the {thing.colour} one"}, "", thing.shape)),
        "sound": (lambda: ({}, "", clip.sound)),
        "sound_with": (lambda: ({}, "", clip.order[clip.sound_move].colour)),
    }[kind]()
    return grammar.concluded(kind, phrase(rng, QUESTIONS[kind], unseen).format(**names), facts, verdict)
