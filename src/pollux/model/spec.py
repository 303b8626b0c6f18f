"""The declaration of one parameter: shape, logical axes, initialiser. What they are for is in params.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax

Params = dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """init: "normal" (truncated, std 1/sqrt(fan_in)) or a constant."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: float | Literal["normal"] = "normal"
    fan_in: int = 0  # 0 = shape[-2]

    def __post_init__(self):
        assert len(self.shape) == len(self.axes), (self.shape, self.axes)


def is_spec(x) -> bool:
    return isinstance(x, Spec)


def stack(specs: Any, count: int) -> Any:
    """The declarations of `count` equal layers as one, with a leading axis "layers"."""
    return jax.tree.map(lambda s: Spec((count, *s.shape), ("layers", *s.axes), s.init, s.fan_in), specs, is_leaf=is_spec)
