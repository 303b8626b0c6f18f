"""An independent judge of drawn pictures and films: which objects are in these pixels, are they the ones asked for, and how do they move?

It knows the names and colours of the world and what the shapes are called for, nothing of the renderer, the codec or the
model. It fits the background, unmixes every pixel into background and one of the colours, joins pixels of one colour into
blobs and names each blob by correlation with silhouettes that it draws itself. Legend: H, W = image, P = pixels of a window.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pollux.data.world.scene import CELLS, COLOURS, GRID, SHAPES

_NAMES = tuple(COLOURS)
_SIDE = 48  # images are judged on windows measured for a 48-pixel canvas
_REACH = 12  # half a window, pixels
_LEAST_AREA = 18.0  # pixels; anything smaller is a fleck, not an object
_LEAST_LIKENESS = 0.85  # correlation below which a blob is no shape at all
_FOREGROUND = 0.35  # least share of an object's colour in a pixel that belongs to it
_WAYS = {(-1, 0): "left", (1, 0): "right", (0, -1): "up", (0, 1): "down"}  # by columns and rows
_BIG_FROM = 6.2  # pixels, nominal radius


class Wanted(Protocol):
    """What an object has to be; `scene.Thing` is one."""

    @property
    def colour(self) -> str: ...
    @property
    def shape(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def cell(self) -> int: ...


@dataclass(frozen=True)
class Found:
    """One blob: `shape` is empty when it resembles none."""

    colour: str
    shape: str
    size: str
    cell: int
    area: float  # pixels

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape or 'blob'} {CELLS[self.cell]}"


@dataclass(frozen=True)
class Match:
    """How one wanted object came out. `right` is the headline figure: cell, colour and shape; size is reported beside it."""

    cell: bool
    colour: bool
    shape: bool
    size: bool

    @property
    def right(self) -> bool:
        return self.cell and self.colour and self.shape


@dataclass(frozen=True)
class Verdict:
    matches: tuple[Match, ...]  # in the order of the request
    spurious: int  # blobs that no wanted object accounts for


@dataclass(frozen=True)
class Move:
    """An object of a film that begins in one cell and ends in another."""

    colour: str
    shape: str
    start: int  # cells
    end: int

    def __str__(self) -> str:
        way = (self.end % GRID - self.start % GRID, self.end // GRID - self.start // GRID)
        return f"the {self.colour} {self.shape or 'blob'} moved {_WAYS.get(way, f'from {CELLS[self.start]} to {CELLS[self.end]}')}"


def judge(pixels: np.ndarray, wanted: Sequence[Wanted]) -> Verdict:
    """Compare a drawing uint8 [H, W, 3] with the requested objects (different cells); see Verdict."""
    found = look(pixels)
    matches, used = [], set()
    for want in wanted:
        here = [f for f in found if f.cell == want.cell and id(f) not in used]
        if not here:
            matches.append(Match(False, False, False, False))
            continue
        best = max(here, key=lambda f: f.area)
        used.add(id(best))
        matches.append(Match(True, best.colour == want.colour, best.shape == want.shape, best.size == want.size))
    return Verdict(tuple(matches), len(found) - len(used))


def look(pixels: np.ndarray) -> tuple[Found, ...]:
    """Name the objects in a square picture uint8 [H, H, 3] (H a multiple of 48), in reading order of their cells."""
    pixels = np.asarray(pixels)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.shape[0] != pixels.shape[1] or pixels.shape[0] % _SIDE:
        raise ValueError(f"the checker needs a square RGB picture with a side that is a multiple of {_SIDE}, got shape {pixels.shape}")
    step = pixels.shape[0] // _SIDE
    image = pixels.reshape(_SIDE, step, _SIDE, step, 3).mean(axis=(1, 3))
    share, owner = _unmix(image, _fit_background(image))
    found = []
    for index, name in enumerate(_NAMES):
        own = np.where(owner == index, share, 0.0)
        for blob in _blobs(own > _FOREGROUND):
            area = float(own[blob].sum())
            if area >= _LEAST_AREA:
                found.append(_name_blob(name, blob, own, share, owner == index, area))
    return tuple(sorted(found, key=lambda f: (f.cell, -f.area)))


def watch(frames: np.ndarray) -> tuple[Move, ...]:
    """How the objects of a film uint8 [F, H, H, 3] moved from its first to its last frame, in the order in which they left their cells.

    An object is followed by its colour; one that is not in both of these frames, or is there several times, has not moved.
    """
    seen = [look(pixels) for pixels in frames]
    moves: list[tuple[int, Move]] = []
    for colour in dict.fromkeys(found.colour for found in seen[0]):
        there = [[found for found in one if found.colour == colour] for one in seen]
        if len(there[0]) != 1 or len(there[-1]) != 1 or there[0][0].cell == there[-1][0].cell:
            continue
        first, last = there[0][0], there[-1][0]
        left = next(i for i, one in enumerate(there) if len(one) == 1 and one[0].cell != first.cell)
        moves.append((left, Move(colour, first.shape, first.cell, last.cell)))
    return tuple(move for _, move in sorted(moves, key=lambda pair: pair[0]))


def _fit_background(image: np.ndarray) -> np.ndarray:
    """A quadratic surface per channel [H, W, 3], by least squares that drops pixels far from it (the objects)."""
    axis = np.linspace(-1, 1, _SIDE)
    y, x = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
    flat = image.reshape(-1, 3)
    full = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], 1)
    surface = np.broadcast_to(np.median(flat, axis=0), flat.shape)
    for terms, limit in ((3, 80.0), (3, 50.0), (3, 35.0), (6, 30.0), (6, 25.0)):
        off = np.linalg.norm(flat - surface, axis=1)
        weight = np.clip(1 - (off / limit) ** 2, 0, None)[:, None] + 1e-6
        basis = full[:, :terms]
        coefficients = np.linalg.solve(basis.T @ (weight * basis), basis.T @ (weight * flat))
        surface = basis @ coefficients
    return surface.reshape(image.shape)


def _unmix(image: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel as ground + share * (colour - ground): share float [H, W] and the index of its best colour [H, W]."""
    towards = np.array([COLOURS[name] for name in _NAMES], float)[:, None, None] - ground
    off = image - ground
    share = np.clip((towards * off).sum(-1) / (towards**2).sum(-1), 0, 1.1)
    residual = np.linalg.norm(off - share[..., None] * towards, axis=-1)
    owner = residual.argmin(0)
    return np.take_along_axis(share, owner[None], 0)[0], owner


def _blobs(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected parts of a mask, each a boolean [H, W]."""
    left, blobs = mask.copy(), []
    while left.any():
        blob = np.zeros_like(mask)
        blob[tuple(np.argwhere(left)[0])] = True
        while True:
            padded = np.pad(blob, 1)
            grown = left & np.any([padded[i : i + _SIDE, j : j + _SIDE] for i in range(3) for j in range(3)], axis=0)
            if grown.sum() == blob.sum():
                break
            blob = grown
        blobs.append(blob)
        left &= ~blob
    return blobs


def _name_blob(name: str, blob: np.ndarray, own: np.ndarray, share: np.ndarray, mine: np.ndarray, area: float) -> Found:
    """Shape, size and cell of one blob. Pixels that another colour covers may hide a part of it and are not compared."""
    rows, columns = np.nonzero(blob)
    weight = own[blob]
    centre_y, centre_x = float(rows @ weight / weight.sum()), float(columns @ weight / weight.sum())
    cell = GRID * _cell_of(centre_y) + _cell_of(centre_x)
    hidden = ~mine & (share > 0.6)
    value = np.pad(np.where(hidden, 0.0, own).astype(np.float32), 2 * _REACH)
    visible = np.pad((~hidden).astype(np.float32), 2 * _REACH)
    top, left = round(centre_y) + _REACH, round(centre_x) + _REACH
    offsets = [(dy, dx) for dy in (-2, -1, 0, 1, 2) for dx in (-2, -1, 0, 1, 2)]
    size = 2 * _REACH + 1
    values = np.stack([value[top + dy : top + dy + size, left + dx : left + dx + size].ravel() for dy, dx in offsets])
    weights = np.stack([visible[top + dy : top + dy + size, left + dx : left + dx + size].ravel() for dy, dx in offsets])
    shapes, radii, silhouettes = _silhouettes()
    norm = np.sqrt((values**2).sum(1)[:, None] * (weights @ (silhouettes**2).T))
    likeness = (values @ silhouettes.T) / np.maximum(norm, 1e-9)
    best = int(likeness.max(0).argmax())
    shape = SHAPES[shapes[best]] if likeness[:, best].max() >= _LEAST_LIKENESS else ""
    return Found(name, shape, "big" if radii[best] > _BIG_FROM else "small", cell, area)


def _cell_of(position: float) -> int:
    return min(GRID - 1, int((position + 0.5) * GRID / _SIDE))


@functools.cache
def _silhouettes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every shape at several radii and turns: index of the shape [S], nominal radius [S], silhouette [S, P] in 0..1."""
    fine = 4  # points a pixel, each way
    axis = (np.arange((2 * _REACH + 1) * fine) + 0.5) / fine - _REACH - 0.5
    y, x = np.meshgrid(axis, axis, indexing="ij")
    shapes, radii, pictures = [], [], []
    for index, shape in enumerate(SHAPES):
        for radius in np.arange(4.2, 8.8, 0.4):
            for turn in (0,) if shape in ("circle", "ring") else (-20, -10, 0, 10, 20):
                theta = np.arctan2(x, -y) - np.radians(turn)
                inside = _inside(shape, np.hypot(x, y) / radius, theta)
                shapes.append(index)
                radii.append(radius)
                pictures.append(inside.reshape(2 * _REACH + 1, fine, -1, fine).mean(axis=(1, 3), dtype=np.float32).ravel())
    return np.array(shapes), np.array(radii), np.array(pictures)


def _inside(shape: str, rho: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Whether points in polar coordinates (theta = 0 is up) lie in a shape of nominal radius 1."""
    if shape == "circle":
        return rho < 0.95
    if shape == "ring":
        return (rho < 1.02) & (rho > 0.52)
    x, y = rho * np.sin(theta), rho * np.cos(theta)
    if shape == "square":
        return (np.abs(x) < 0.85) & (np.abs(y) < 0.85)
    if shape == "cross":
        return ((np.abs(x) < 1.1) & (np.abs(y) < 0.33)) | ((np.abs(y) < 1.1) & (np.abs(x) < 0.33))
    if shape == "triangle":
        return _in_polygon(x, y, 1.25 * np.exp(1j * np.arange(3) * 2 * np.pi / 3))
    if shape == "star":
        return _in_polygon(x, y, np.tile([1.25, 0.53], 5) * np.exp(1j * np.arange(10) * np.pi / 5))
    raise ValueError(f"shape {shape!r} is unknown")


def _in_polygon(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Even-odd rule; a corner is y + ix, so that angle 0 is up."""
    inside = np.zeros(x.shape, bool)
    for a, b in zip(corners, np.roll(corners, -1), strict=True):
        crosses = (a.real > y) != (b.real > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = a.imag + (y - a.real) * (b.imag - a.imag) / (b.real - a.real)
        inside ^= crosses & (x < at)
    return inside
