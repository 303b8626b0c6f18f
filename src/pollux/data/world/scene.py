"""What can be in a picture of the world: coloured shapes on a 3x3 grid over a dim background.

A `Scene` is the known truth of one picture; `render.py` paints it, `grammar.py` talks about it. Everything is drawn from
a generator that `stream(seed, ...)` makes, so a scene is a pure function of its key.
"""

from __future__ import annotations

import colorsys
import zlib
from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 40),
    "orange": (245, 140, 25),
    "yellow": (240, 225, 45),
    "green": (45, 185, 60),
    "cyan": (60, 215, 225),
    "blue": (45, 85, 235),
    "purple": (145, 60, 215),
    "pink": (250, 130, 195),
}
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
SIZES = ("small", "big")
RADII = {"small": (4.9, 5.4), "big": (7.2, 7.8)}  # range of the nominal radius in pixels of a 48-pixel canvas
CELLS = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
HELD_OUT = frozenset(
    {("red", "star"), ("orange", "cross"), ("yellow", "circle"), ("green", "ring"), ("blue", "triangle"), ("purple", "square")}
)
GRID = 3
CANVAS = 48  # pixels, the canvas that RADII and the jitter are given for

_PAIRS = {
    False: tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT),
    True: tuple(sorted(HELD_OUT)),
}


@dataclass(frozen=True)
class SceneConfig:
    """How pictures vary. Lengths are pixels of a 48-pixel canvas and scale with `canvas`."""

    canvas: int = CANVAS
    min_objects: int = 1
    max_objects: int = 3
    jitter: float = 2.0  # largest shift of a centre from the centre of its cell, each way
    rotation: float = 20.0  # degrees, largest turn each way
    contrast: float = 1.0  # of the two background colours; 0 = one flat colour
    noise: float = 5.0  # standard deviation of a pixel, of 255

    def __post_init__(self):
        if not 1 <= self.min_objects <= self.max_objects <= len(SHAPES):
            raise ValueError(f"objects per scene {self.min_objects}..{self.max_objects} must lie within 1..{len(SHAPES)}")
        if self.canvas < 24:
            raise ValueError(f"canvas {self.canvas} must be at least 24 pixels, otherwise shapes cannot be told apart")


@dataclass(frozen=True)
class Thing:
    """One object. `x`, `y` are its centre and `radius` its nominal radius, all in pixels of the canvas; `angle` in degrees."""

    colour: str
    shape: str
    size: str
    cell: int  # index into CELLS
    x: float
    y: float
    radius: float
    angle: float = 0.0
    brightness: float = 1.0

    @property
    def place(self) -> str:
        return CELLS[self.cell]

    @property
    def row(self) -> int:
        return self.cell // GRID

    @property
    def column(self) -> int:
        return self.cell % GRID


@dataclass(frozen=True)
class Scene:
    """The truth of one picture; `things` are in reading order and differ pairwise in cell, colour and shape."""

    things: tuple[Thing, ...]
    canvas: int
    background: tuple[tuple[float, float, float], tuple[float, float, float]]  # the two ends of the gradient, RGB 0..255
    direction: float  # of the gradient, radians
    noise: float
    noise_seed: int

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        return frozenset((t.colour, t.shape) for t in self.things)

    @property
    def held_out(self) -> bool:
        """Whether a held-out pair of colour and shape is present."""
        return bool(self.pairs & HELD_OUT)


def stream(seed: int, *key: str | int) -> np.random.Generator:
    """A random generator that is a pure function of the seed and the key (words and non-negative integers)."""
    words = [zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))


def sample_pairs(rng: np.random.Generator, count: int, held_out: bool) -> list[tuple[str, str]]:
    """`count` pairs (colour, shape) that differ in both; without held-out pairs, or with at least one of them."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        pool = _PAIRS[held_out and not pairs]
        colour, shape = pool[rng.integers(len(pool))]
        if all(colour != c and shape != s for c, s in pairs):
            pairs.append((colour, shape))
    return [pairs[i] for i in rng.permutation(count)]


def place_thing(rng: np.random.Generator, config: SceneConfig, pair: tuple[str, str], cell: int) -> Thing:
    """An object of this colour and shape in this cell, with random size, shift, turn and brightness."""
    unit = config.canvas / CANVAS
    size = SIZES[rng.integers(2)]
    low, high = RADII[size]
    u = rng.random(5).tolist()
    shift_x, shift_y = ((2 * v - 1) * config.jitter * unit for v in u[:2])
    return Thing(
        colour=pair[0],
        shape=pair[1],
        size=size,
        cell=cell,
        x=(cell % GRID + 0.5) * config.canvas / GRID + shift_x,
        y=(cell // GRID + 0.5) * config.canvas / GRID + shift_y,
        radius=(low + (high - low) * u[2]) * unit,
        angle=(2 * u[3] - 1) * config.rotation,
        brightness=0.9 + 0.15 * u[4],
    )


def sample_background(rng: np.random.Generator, contrast: float) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Two dim, muted colours of random hue; `contrast` 0 makes them equal."""
    ends = [colorsys.hsv_to_rgb(h, 0.15 + 0.3 * s, 0.12 + 0.26 * v) for h, s, v in rng.random((2, 3)).tolist()]
    middle = [(a + b) / 2 for a, b in zip(*ends, strict=True)]
    first, second = ([255 * (m + contrast * (e - m)) for e, m in zip(end, middle, strict=True)] for end in ends)
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])


def sample_scene(rng: np.random.Generator, config: SceneConfig, held_out: bool) -> Scene:
    """A random scene. held_out False: no held-out pair; True: at least one."""
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    cells = sorted(int(c) for c in rng.permutation(GRID * GRID)[:count])
    pairs = sample_pairs(rng, count, held_out)
    return make_scene(rng, config, tuple(place_thing(rng, config, p, c) for p, c in zip(pairs, cells, strict=True)))


def make_scene(rng: np.random.Generator, config: SceneConfig, things: tuple[Thing, ...]) -> Scene:
    """Put objects on a random background."""
    return Scene(
        things=things,
        canvas=config.canvas,
        background=sample_background(rng, config.contrast),
        direction=float(rng.random() * 2 * np.pi),
        noise=config.noise,
        noise_seed=int(rng.integers(2**31)),
    )
