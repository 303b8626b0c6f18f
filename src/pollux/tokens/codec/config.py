"""The shape of an image codec and of its training. The shape is kept as codec.json, so that codes are read as they were written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pollux.plain import from_plain


@dataclass(frozen=True)
class CodecConfig:
    """An image of `size` is cut into `patch` x `patch` pixels; each patch becomes one code of two digits, *form* and *colour*.

    A digit is a small group of FSQ dimensions in mixed radix: `form_levels=(4, 4, 4, 4)` is a digit of 256 values.
    """

    size: tuple[int, int] = (48, 48)  # height, width in pixels
    patch: int = 8
    window: int = 16  # pixels the encoder sees around a patch, per side
    form_levels: tuple[int, ...] = (4, 4, 4, 4)
    colour_levels: tuple[int, ...] = (4, 4, 4)
    hidden: int = 128
    layers: int = 3  # colour layers that the decoder blends in a patch

    def __post_init__(self):
        height, width = self.size
        if height <= 0 or width <= 0 or height % self.patch or width % self.patch:
            raise ValueError(f"codec size {height}x{width} must be a positive multiple of patch {self.patch} on both sides")
        if self.patch % 2:
            raise ValueError(f"codec patch {self.patch} must be even")
        if self.window < self.patch or self.window % 2:
            raise ValueError(f"codec window {self.window} must be even and at least patch {self.patch}")
        for levels in (self.form_levels, self.colour_levels):
            if not levels or any(level < 2 or level % 2 for level in levels):
                raise ValueError(f"codec levels {levels} must be even numbers of at least 2")
        if self.layers < 1 or self.hidden < 1:
            raise ValueError(f"codec layers {self.layers} and hidden {self.hidden} must be at least 1")

    @property
    def levels(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """FSQ levels of the form digit and of the colour digit."""
        return self.form_levels, self.colour_levels

    @property
    def digit_sizes(self) -> tuple[int, int]:
        """How many values each digit has."""
        return math.prod(self.form_levels), math.prod(self.colour_levels)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def num_codes(self) -> int:
        return self.grid[0] * self.grid[1]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CodecConfig:
        """Inverse of dataclasses.asdict through JSON. Raises ValueError naming an unknown field."""
        return from_plain(cls, data)


@dataclass(frozen=True)
class CodecTraining:
    """How a codec is trained. It ends after `steps`, or after `seconds` if that comes first; a run without `seconds` is deterministic."""

    steps: int = 4000
    seconds: float | None = None
    learning_rate: float = 8e-3
    weight_decay: float = 1e-2
    seed: int = 0

    def __post_init__(self):
        if self.steps < 1 or (self.seconds is not None and self.seconds <= 0):
            raise ValueError(f"codec training needs steps >= 1 and seconds > 0 (or None), got {self.steps} and {self.seconds}")
