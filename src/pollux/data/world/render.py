"""Paint a scene: antialiased shapes from signed distances, each on its own small box, over a gradient with noise.

A picture costs a fraction of a millisecond, because it is painted inside the training loop. Legend: H, W = canvas in pixels.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from pollux.data.world.noise import normal
from pollux.data.world.scene import COLOURS, Scene, Thing

_RGB = {name: np.array(rgb, np.float32) for name, rgb in COLOURS.items()}


def distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels from points (x, y) to the outline of a shape at the origin, negative inside.

    It is exact near the edges' middles, which is all that antialiasing needs. y points down; a triangle and a star point up.
    """
    if shape == "circle":
        return np.hypot(x, y) - 0.95 * radius
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.77 * radius) - 0.25 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.85 * radius
    if shape == "cross":
        long, short = np.maximum(np.abs(x), np.abs(y)) - 1.1 * radius, np.minimum(np.abs(x), np.abs(y)) - 0.33 * radius
        return np.maximum(long, short)
    if shape == "triangle":
        return _folded(x, y, 3, 1.25 * radius, 1.25 / 2 * radius)
    if shape == "star":
        return _folded(x, y, 5, 1.25 * radius, 0.53 * radius)
    raise ValueError(f"shape {shape!r} is unknown")


def _folded(x: np.ndarray, y: np.ndarray, points: int, outer: float, inner: float) -> np.ndarray:
    """Distance to a polygon whose corners lie at radius `outer` (up first) and, between them, at radius `inner`."""
    half = math.pi / points
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    rho = np.hypot(x, y)
    u, v = rho * np.cos(angle), rho * np.sin(angle)
    normal_u, normal_v = inner * math.sin(half), outer - inner * math.cos(half)
    return ((u - outer) * normal_u + v * normal_v) / math.hypot(normal_u, normal_v)


@functools.lru_cache(maxsize=8)
def _axes(canvas: int) -> tuple[np.ndarray, np.ndarray]:
    centres = np.arange(canvas, dtype=np.float32) + 0.5
    return centres[None, :], centres[:, None]


def background(scene: Scene) -> np.ndarray:
    """The gradient alone, float32 [H, W, 3] in 0..255."""
    x, y = _axes(scene.canvas)
    half = scene.canvas / 2
    along = ((x - half) * math.cos(scene.direction) + (y - half) * math.sin(scene.direction)) / scene.canvas
    share = np.clip(along * 0.9 + 0.5, 0, 1)[..., None]
    first, second = np.asarray(scene.background, np.float32)
    return first + share * (second - first)


def paint(image: np.ndarray, thing: Thing) -> None:
    """Blend one object into a float image [H, W, 3], in place."""
    reach = 1.3 * thing.radius + 1
    canvas = len(image)
    left, right = max(0, int(thing.x - reach)), min(canvas, int(thing.x + reach) + 1)
    top, bottom = max(0, int(thing.y - reach)), min(canvas, int(thing.y + reach) + 1)
    axis_x, axis_y = _axes(canvas)
    x, y = axis_x[:, left:right] - thing.x, axis_y[top:bottom] - thing.y
    cos, sin = math.cos(math.radians(thing.angle)), math.sin(math.radians(thing.angle))
    signed = distance(thing.shape, cos * x + sin * y, cos * y - sin * x, thing.radius)
    cover = np.clip(0.5 - signed, 0, 1)[..., None]
    box = image[top:bottom, left:right]
    box += cover * (_RGB[thing.colour] * thing.brightness - box)


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8 [H, W, 3]."""
    image = background(scene)
    for thing in scene.things:
        paint(image, thing)
    return add_noise(image, scene.noise, scene.noise_seed)


def add_noise(image: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    """Round a float image [..., 3] in 0..255 to uint8 after adding Gaussian noise of this deviation."""
    return np.clip(image + deviation * normal(image.shape, seed) + 0.5, 0, 255).astype(np.uint8)
