"""What a run trains: all parameters of the model, or with `lora.rank` adapters beside frozen ones."""

from __future__ import annotations

import re

import jax

from pollux.model import low_rank, rounding
from pollux.model import params as model_params
from pollux.model.config import ModelConfig
from pollux.model.folder import tensor_name
from pollux.model.params import Params, Spec, is_spec
from pollux.train.config import LoraConfig, TrainConfig
from pollux.train.optimizer import is_matrix

_LAYER = re.compile(r"(groups|tail)\.\d+\.")


def trained(config: TrainConfig) -> Params:
    """The declarations of what the optimiser moves. Raises ValueError if `lora.targets` names nothing or what cannot have adapters."""
    return adapters(config.model, config.lora) if config.lora.rank else model_params.declare(config.model)


def rounded(config: TrainConfig, params: Params) -> Params:
    """What is trained, rounded if the run says so. Its gradient is applied to what is behind it (straight through: Bengio et al. 2013)."""
    return rounding.rounded(params, config.model, config.weight_bits) if config.weight_bits else params


def attached(config: TrainConfig, params: Params, base: Params | None) -> Params:
    """All parameters of the model: what is trained, attached to the frozen ones if there are such."""
    return params if base is None else low_rank.attach(base, params, config.lora.scale)


def whole(config: TrainConfig, params: Params, base: Params | None) -> Params:
    """All parameters of the model as a step reads them."""
    return attached(config, rounded(config, params), base)


def adapters(model: ModelConfig, config: LoraConfig) -> dict[str, dict[str, Spec]]:
    """A and B, which begins at 0, of each chosen matrix by its name."""
    maps = _linear_maps(model)
    places = {name: _LAYER.sub("", name) for name in maps}
    chosen: set[str] = set()
    for target in config.targets:
        found = {name for name, place in places.items() if f"{place}.".startswith(f"{target}.")}
        if not found:
            reason = "experts cannot have adapters" if target.startswith("experts") else "no linear map's path begins so"
            raise ValueError(f"lora.targets names {target!r}, but {reason}; there are {', '.join(dict.fromkeys(places.values()))}")
        chosen |= found
    return {name: _adapter(spec, config.rank) for name, spec in maps.items() if name in chosen}


def _adapter(spec: Spec, rank: int) -> dict[str, Spec]:
    *stacks, rows, columns = spec.shape
    *stack_axes, row_axis, column_axis = spec.axes
    a = Spec((*stacks, rows, rank), (*stack_axes, row_axis, None))
    return {"a": a, "b": Spec((*stacks, rank, columns), (*stack_axes, None, column_axis), 0.0)}


def _linear_maps(model: ModelConfig) -> dict[str, Spec]:
    """The matrices, or stacks of them, that meet activations in `matmul`, by name: neither experts nor kernels of convolutions."""
    leaves = jax.tree_util.tree_leaves_with_path(model_params.declare(model), is_leaf=is_spec)
    found = {tensor_name(path): spec for path, spec in leaves if is_matrix(spec)}
    return {name: spec for name, spec in found.items() if not re.search(r"\.experts\.|\.kernel$", name)}
