"""Low-rank adapters: a frozen weight W and a small trained product beside it, W + scale A B (LoRA, Hu et al. 2021).

Adapters are a flat dict: the name of a tensor (folder.tensor_name) -> {"a": A, "b": B}. Attached to the parameters of a model they run in
the decoder as they are; merged, they are plain weights again.
Shapes: x [..., K], W [K, N], A [K, r], B [r, N]; a stack of layers has them all on a leading axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pollux.model.folder import named, tensor_name
from pollux.model.matmul import matmul
from pollux.model.spec import Params
from pollux.model.weight import Weight

Adapters = dict[str, dict[str, Any]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank(Weight):
    """base + scale a b, never multiplied out. The base may be of any type that matmul takes."""

    base: jax.Array | Weight
    a: jax.Array
    b: jax.Array
    scale: float = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def product(self, x: jax.Array) -> jax.Array:
        return matmul(x, self.base) + self.scale * matmul(matmul(x, self.a), self.b)

    def dense(self, dtype) -> jax.Array:
        """Added in float32, then rounded."""
        base = self.base.dense(jnp.float32) if isinstance(self.base, Weight) else self.base.astype(jnp.float32)
        return (base + self.scale * jnp.matmul(self.a, self.b, precision="highest")).astype(dtype)


def _is_weight(x: Any) -> bool:
    return isinstance(x, Weight)


def attach(params: Params, adapters: Mapping[str, Mapping[str, jax.Array]], scale: float) -> Params:
    """The parameters with a LowRank leaf in place of each weight that has an adapter. Raises ValueError for one that fits no weight."""
    missing = dict(adapters)

    def leaf(path: tuple[Any, ...], weight: Any) -> Any:
        pair = missing.pop(tensor_name(path), None)
        if pair is None:
            return weight
        shape = (*pair["a"].shape[:-1], pair["b"].shape[-1])
        if weight.shape != shape:
            raise ValueError(f"the adapter is for another model: its {tensor_name(path)} is {shape}, that of this one {weight.shape}")
        return LowRank(weight, pair["a"], pair["b"], scale)

    attached = jax.tree_util.tree_map_with_path(leaf, params, is_leaf=_is_weight)
    if missing:
        raise ValueError(f"the adapter is for another model: this one has no {', '.join(missing)}")
    return attached


def merge(params: Params) -> Params:
    """The same model with each LowRank leaf multiplied out, in the dtype of its base; of a base that is no array, in that of the norms."""

    def leaf(weight: Any) -> Any:
        if not isinstance(weight, LowRank):
            return weight
        return weight.dense(params["final_norm"]["scale"].dtype if isinstance(weight.base, Weight) else weight.base.dtype)

    return jax.tree.map(leaf, params, is_leaf=_is_weight)


def save_adapters(path: Path, adapters: Adapters, scale: float) -> None:
    """One safetensors file: a tensor NAME.a and NAME.b for each adapted weight NAME, and the scale among the metadata."""
    save_file(named(adapters), path, metadata={"scale": repr(scale)})


def load_adapters(path: str | Path) -> tuple[Adapters, float]:
    """Adapters and scale. Raises ValueError if the file holds none."""
    try:
        with safe_open(path, framework="numpy") as file:
            scale = float((file.metadata() or {})["scale"])
            pairs = {name.rpartition(".")[0] for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {name: {part: jnp.asarray(file.get_tensor(f"{name}.{part}")) for part in "ab"} for name in sorted(pairs)}, scale
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{path} is not a file of adapters: {error}") from error
