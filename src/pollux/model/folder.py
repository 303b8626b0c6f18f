"""One folder is a model: config.json, *.safetensors (with an index when there are several), and what tokens/ and generate/ add beside them.

config.json holds {"model": ModelConfig, "tokens": TokensConfig}. A tensor is named by its path in the parameter tree, for example
"groups.0.attention.q" of shape [num_groups, D, N*H]; quantised (quantized.py), it has ".q4" or ".q8" at its end. Folders in the
layout of Hugging Face are read too (huggingface.py).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from pollux.model import huggingface
from pollux.model.config import ModelConfig
from pollux.model.huggingface import Source
from pollux.model.params import Params, Spec, declare, is_spec, matrix
from pollux.model.quantized import Quantized, packed_shape
from pollux.model.tensors import StoredTensor, aligned, stored_tensors
from pollux.tokens.config import TokensConfig
from pollux.tokens.huggingface import tokens_config

SHARD_BYTES = 4 * 2**30
INDEX = "model.safetensors.index.json"


def tensor_name(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(p, "key", getattr(p, "idx", p))) for p in path)


def named(params: Params) -> dict[str, np.ndarray]:
    """All tensors by their names, as numpy arrays; a quantised one is its packed bytes, named with its number of bits."""
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda leaf: isinstance(leaf, Quantized)):
        if isinstance(leaf, Quantized):
            tensors[f"{tensor_name(path)}.q{leaf.bits}"] = np.asarray(leaf.packed, order="C")
        else:
            tensors[tensor_name(path)] = np.asarray(leaf, order="C")
    return tensors


def save(folder: str | Path, params: Params, config: ModelConfig, tokens: TokensConfig | None = None) -> None:
    """Write config.json and the weights. Each file is written beside its place and then renamed, so a reader never sees half of it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder, named(params).items())
    data = {"model": config.to_json(), "tokens": dataclasses.asdict(tokens or TokensConfig())}
    _replace(folder / "config.json", lambda path: path.write_text(json.dumps(data, indent=1)))


def save_tensors(folder: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write tensors as one safetensors file, or as several with an index if they are large."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in tensors:
        if size + array.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = np.asarray(array, order="C")
        size += array.nbytes
    files = ["model.safetensors"] if len(shards) == 1 else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        _replace(folder / file, functools.partial(save_file, shard, metadata={"format": "pt"}))
    if len(shards) == 1:
        (folder / INDEX).unlink(missing_ok=True)  # of a larger model that was here before
    else:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        _replace(folder / INDEX, lambda path: path.write_text(json.dumps({"weight_map": weight_map}, indent=1)))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


def load_config(folder: str | Path) -> tuple[ModelConfig, TokensConfig]:
    """Read config.json. Raises ValueError if the folder is not a model of this project."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a model folder: it has no config.json")
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict) or not {"model", "model_type"} & set(data):
        raise ValueError(f"{path} has no 'model' entry: it was not written by pollux")
    try:
        if "model_type" in data:
            return huggingface.model_config(data, Path(folder).name), tokens_config(Path(folder))
        return ModelConfig.from_json(data["model"]), TokensConfig.from_json(data.get("tokens", {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_params(folder: str | Path, config: ModelConfig, dtype=None, progress: Callable[[float], None] | None = None) -> Params:
    """Read the weights, tensor by tensor from the mapped files, as `dtype` (None = as stored). Raises ValueError that names a missing
    or misshapen tensor.

    progress: called after every tensor with the share of the parameters that are read.

    The largest come first: while one is read its part of a file is in memory too, so the most that is needed at a time is little more
    than the weights.
    """
    folder = Path(folder)
    files = _tensors(folder)
    data = json.loads((folder / "config.json").read_text())
    theirs = huggingface.sources(config, data) if "model_type" in data else None

    def get(name: str) -> np.ndarray:
        if name not in files:
            raise ValueError(f"{folder} has no tensor {name}, which model {config.name!r} needs")
        return files[name].read()

    def read(path, spec: Spec) -> jax.Array | Quantized:
        name = tensor_name(path)
        for bits in (4, 8):
            if f"{name}.q{bits}" in files:
                return _quantized(get(f"{name}.q{bits}"), f"{name}.q{bits}", spec, bits)
        if theirs is not None and name not in theirs:
            assert spec.init != "normal", name
            return jnp.full(spec.shape, spec.init, dtype or jnp.float32)  # what that layout does not know, such as log_temperature
        found = (Source(name),) if theirs is None else theirs[name]
        stacked = theirs is not None and huggingface.is_stacked(name)
        wanted = spec.shape[1:] if stacked else spec.shape
        for i, source in enumerate(found):
            one = source.read(get(source.name))
            if one.shape != wanted:
                raise ValueError(f"tensor {source.name} in {folder} has shape {one.shape}, config.json wants {wanted}")
            if i == 0:
                whole = aligned(spec.shape, dtype or one.dtype)
            whole[i if stacked else ...] = one
        return jax.device_put(whole)

    leaves, structure = jax.tree_util.tree_flatten_with_path(declare(config), is_leaf=is_spec)
    sizes = [math.prod(spec.shape) for _, spec in leaves]
    arrays, done = {}, 0
    for i in sorted(range(len(leaves)), key=lambda i: -sizes[i]):
        arrays[i] = read(*leaves[i])
        done += sizes[i]
        if progress is not None:
            progress(done / sum(sizes))
    return jax.tree.unflatten(structure, [arrays[i] for i in range(len(leaves))])


def _quantized(packed: np.ndarray, name: str, spec: Spec, bits: int) -> Quantized:
    inputs, outputs = matrix(spec)
    wanted = (*spec.shape[:-2], *packed_shape(inputs, outputs, bits))
    if packed.shape != wanted or packed.dtype != np.uint8:
        raise ValueError(f"tensor {name} is {packed.dtype} of shape {packed.shape}, config.json wants uint8 of {wanted}")
    whole = aligned(packed.shape, packed.dtype)
    whole[...] = packed
    return Quantized(jax.device_put(whole), inputs, outputs)


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder, by name. Raises ValueError for a file that is missing or damaged."""
    index = folder / INDEX
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    where: dict[str, StoredTensor] = {}
    for file in files:
        if not (folder / file).is_file():
            raise ValueError(f"{folder} has no {file}: the copy is incomplete")
        where |= stored_tensors(folder / file)
    return where


def hash_params(params: Params) -> str:
    """SHA-256 of all tensors: names, dtypes, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, array in sorted(named(params).items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
