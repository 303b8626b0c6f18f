"""A model with weights of 4 or 8 bits: which matrices, which codes and scales, calibrated on documents of all modalities.

"nearest" takes for each group of 32 inputs the scale with the least squared error. "gptq" (Frantar et al. 2022) goes through the
inputs of a matrix in order and moves the error that rounding one of them makes in the outputs into those that are still to come, by
the second moments of what the matrix reads in the calibration documents.

Shapes: K inputs, N outputs of a matrix, G groups of 32 inputs, S tokens.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cholesky, solve_triangular

from pollux.generate.decode import cache_dtype
from pollux.generate.model import Model
from pollux.model import decoder
from pollux.model.config import ModelConfig
from pollux.model.folder import tensor_name
from pollux.model.params import Params, Spec, declare, is_spec, matrix
from pollux.model.quantized import INPUTS, OUTPUTS, Quantized, pack
from pollux.model.weight import Stacked
from pollux.tokens.pack import Packer, sizes
from pollux.tokens.sequence import Inputs, Sequence

Method = Literal["gptq", "nearest"]
MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "embed", "unembed", "project", "hidden", "out", "colours")
SHRINKS = np.linspace(0.7, 1.1, 17)  # candidates for a scale, relative to the one that just reaches the largest weight
DAMPING = 0.01  # of the mean second moment
ROWS = 4  # of a batch of calibration documents, each as long as the longest of them
PART = 2**24  # weights that are rounded to the nearest at a time
MOMENT_BYTES = 2**31  # of second moments that are gathered in one pass over the calibration documents


def matrices(config: ModelConfig) -> dict[str, Spec]:
    """The matrices that are quantised, by name: projections, feed-forward, experts, embeddings and the embedders of media.

    Routers, tables of places and the towers of other families keep their dtype.
    """
    specs = {tensor_name(path): spec for path, spec in jax.tree_util.tree_leaves_with_path(declare(config), is_leaf=is_spec)}

    def is_matrix(name: str, spec: Spec) -> bool:
        *folders, last = name.split(".")
        wanted = last in MATRICES or last.startswith("stem_")
        return wanted and spec.init == "normal" and len(spec.shape) >= 2 and "tower" not in folders

    return {name: spec for name, spec in specs.items() if is_matrix(name, spec)}


def quantize(
    model: Model, bits: int = 4, method: Method = "gptq", calibration: Iterable[Sequence] = (), log: Callable[[str], None] = print
) -> Model:
    """The same model with quantised matrices, and an image codec of 8 bits on disk.

    calibration: sequences that gptq observes. `log` receives a line now and then.

    Raises ValueError for a wrong number of bits, a model that is quantised already, or gptq without sequences.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits {bits} must be 4 or 8")
    chosen = {name: spec for name, spec in matrices(model.config).items() if not isinstance(_leaf(model.params, name), Quantized)}
    if not chosen:
        raise ValueError("the model is quantised already; quantise the one it was made of")
    sequences = list(calibration) if method == "gptq" else []
    if method == "gptq" and not sequences:
        raise ValueError("gptq needs calibration documents; without them use the method nearest")
    done: dict[str, Quantized] = {}
    params = model.params
    for names in _passes({name: spec for name, spec in chosen.items() if method == "gptq" and _is_observed(name, spec)}):
        moments = observe(params, model, names, sequences)
        for name in names:
            done[name] = _quantize(_leaf(model.params, name), chosen[name], bits, moments[name])
        params = _replaced(model.params, done)
        log(f"{len(done)} of {len(chosen)} matrices with {sum(map(len, sequences)):,} tokens of calibration")
    for name in sorted(set(chosen) - set(done)):
        done[name] = _quantize(_leaf(model.params, name), chosen[name], bits)
    params = _replaced(model.params, done)
    codec = model.codec and dataclasses.replace(model.codec, bits=8)
    return Model(params, model.config, model.tokens_config, model.vocabulary, codec, model.sampling, model.limits)


def _is_leaf(leaf) -> bool:
    return isinstance(leaf, Stacked)


def _is_observed(name: str, spec: Spec) -> bool:
    """Experts read ragged rows and an embedding table is read by rows; they and the unembedding are rounded to the nearest."""
    return "experts" not in spec.axes and "vocab" not in spec.axes


def _passes(specs: dict[str, Spec]) -> Iterator[list[str]]:
    """Names whose second moments fit into memory together, in the order of the layers."""
    names: list[str] = []
    size = 0
    for name, spec in specs.items():
        more = 4 * int(np.prod(spec.shape[:-2])) * matrix(spec)[0] ** 2
        if names and size + more > MOMENT_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    if names:
        yield names


def _leaf(params: Params, name: str):
    at: Any = params
    for key in name.split("."):
        at = at[int(key)] if key.isdigit() else at[key]
    return at


def _replaced(params: Params, new: dict[str, Quantized]) -> Params:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: new.get(tensor_name(path), leaf), params, is_leaf=_is_leaf)


@dataclass
class Moments:
    """Sums of x x^T over the tokens that a matrix read, float32 [K, K] for each member of its stack."""

    sums: dict[int, np.ndarray] = field(default_factory=dict)
    read: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)  # by the leading shape of x: which rows count; else all

    def add(self, member: int, x: np.ndarray) -> None:
        x = x[self.read.get(x.shape[:2], ...)].reshape(-1, x.shape[-1]).astype(np.float32)
        self.sums[member] = self.sums.get(member, 0) + x.T @ x


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Observed(Stacked):
    """A plain weight that notes what it reads; works outside jit alone."""

    weight: jax.Array
    moments: Moments = field(metadata={"static": True})
    index: int = field(default=-1, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape if self.index < 0 else self.weight.shape[1:]

    def layer(self, index: jax.Array) -> Observed:
        return dataclasses.replace(self, index=int(index))

    def dense(self, dtype) -> jax.Array:
        return (self.weight if self.index < 0 else self.weight[self.index]).astype(dtype)

    def rows(self, ids: jax.Array, dtype) -> jax.Array:
        raise AssertionError("an embedding table is not observed")

    def product(self, x: jax.Array) -> jax.Array:
        self.moments.add(self.index, np.asarray(x))
        return jnp.matmul(x, self.dense(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def observe(params: Params, model: Model, names: list[str], sequences: list[Sequence]) -> dict[str, Moments]:
    """What the named matrices read in the sequences, member by member of each stack (-1: not a stack)."""
    moments = {name: Moments() for name in names}

    def watched(path, leaf):
        name = tensor_name(path)
        return Observed(leaf, moments[name]) if name in moments else leaf

    observing = jax.tree_util.tree_map_with_path(watched, params, is_leaf=_is_leaf)
    for inputs in _batches(model, sequences):
        tokens = {inputs.ids.shape: inputs.segment > 0}
        media = {soft.index.shape: soft.index < inputs.ids.size for soft in inputs.soft.values()}
        for name in names:
            moments[name].read = media if name.startswith("soft.") else tokens
        with jax.disable_jit():
            decoder.hidden(observing, model.config, inputs, dtype=cache_dtype(params))
    return moments


def _batches(model: Model, sequences: list[Sequence]) -> Iterator[Inputs]:
    """The sequences, packed; all batches have one shape, for outside jit every operation is compiled for every shape."""
    most: Counter[str] = Counter()
    for sequence in sequences:
        most |= sizes(sequence)
    room = {str(soft.name): ROWS * most[soft.name] for soft in model.config.soft_inputs if most[soft.name]}
    packer = Packer(ROWS, max(2, most["tokens"]), max(1, most["targets"]), room, model.tokens_config)
    for sequence in sequences:
        if not packer.add(sequence):
            yield packer.take().inputs
            packer.add(sequence)
    yield packer.take().inputs


def _quantize(leaf: jax.Array, spec: Spec, bits: int, moments: Moments | None = None) -> Quantized:
    """One matrix or a stack of them; only a part of it is there in float32 at a time."""
    inputs, outputs = matrix(spec)
    stored = np.asarray(leaf)
    if spec.axes[-2] == "vocab":
        stored = np.swapaxes(stored, -1, -2)
    packed = []
    for i, member in enumerate(stored.reshape(-1, inputs, outputs)):
        seen = None if moments is None else moments.sums.get(i if stored.ndim > 2 else -1)
        if seen is None:
            step = max(OUTPUTS, PART // inputs // OUTPUTS * OUTPUTS)
            parts = (member[:, start : start + step].astype(np.float32) for start in range(0, outputs, step))
            packed.append(np.concatenate([pack(*nearest(part, bits), bits) for part in parts]))
        else:
            packed.append(pack(*gptq(member.astype(np.float32), seen, bits), bits))
    whole = np.stack(packed).reshape(*stored.shape[:-2], *packed[0].shape)
    return Quantized(jnp.asarray(whole), inputs, outputs)


def nearest(weight_KN: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [K, N] and scales float16 [G, N] with the least squared error of each group."""
    K, N = weight_KN.shape
    groups = np.pad(weight_KN, ((0, -K % INPUTS), (0, 0))).reshape(-1, INPUTS, N)
    scales = best_scales(groups, np.ones((len(groups), INPUTS, 1), np.float32), bits)
    codes = encode(groups, scales[:, None], bits)
    return codes.reshape(-1, N)[:K], scales


def best_scales(groups_GIN: np.ndarray, weight_GI1: np.ndarray, bits: int) -> np.ndarray:
    """Scales float16 [G, N] that minimise the weighted squared error of rounding; the largest weight of a group takes the most negative
    code or comes near to it, so that a scale may be negative."""
    most = np.take_along_axis(groups_GIN, np.abs(groups_GIN).argmax(1)[:, None], 1)[:, 0]
    best, least = np.zeros(most.shape, np.float16), np.full(most.shape, np.inf, np.float32)
    for shrink in SHRINKS:
        scales = (-most * shrink / (1 << (bits - 1))).astype(np.float16)
        error = groups_GIN - decode(encode(groups_GIN, scales[:, None], bits), scales[:, None], bits)
        error = (weight_GI1 * error * error).sum(1)
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    return best


def encode(weight: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """The nearest codes, uint8. 8 bits leave -128 out, which the kernels cannot have."""
    zero = 1 << (bits - 1)
    scale = scale.astype(np.float32)
    codes = np.rint(np.divide(weight, scale, out=np.zeros_like(weight), where=scale != 0))
    return (np.clip(codes, 1 - zero if bits == 8 else -zero, zero - 1) + zero).astype(np.uint8)


def decode(codes: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    return (codes.astype(np.float32) - (1 << (bits - 1))) * scale.astype(np.float32)


def gptq(weight_KN: np.ndarray, moments_KK: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [K, N] and scales float16 [G, N] that keep x W for x of these second moments (Frantar et al. 2022, algorithm 1).

    Groups take their scales when their turn comes, for the weights as the groups before have moved them.
    """
    K, N = weight_KN.shape
    moments = moments_KK.astype(np.float64)
    unread = np.diag(moments) == 0
    moments[unread, unread] = 1
    moments[np.diag_indices(K)] += DAMPING * np.mean(np.diag(moments))
    lower = cholesky(moments, lower=True)
    inverse = solve_triangular(lower, np.eye(K), lower=True)
    upper = cholesky(inverse.T @ inverse)  # U with H^-1 = U^T U, whose rows are what rounding one input does to those after it
    left = weight_KN.astype(np.float64)
    left[unread] = 0
    codes, scales = np.zeros((K, N), np.uint8), np.zeros((-(-K // INPUTS), N), np.float16)
    importance = (1 / np.diag(upper) ** 2).astype(np.float32)
    for g, start in enumerate(range(0, K, INPUTS)):
        stop = min(start + INPUTS, K)
        group = left[start:stop].astype(np.float32)
        scales[g] = best_scales(group[None], importance[None, start:stop, None], bits)[0]
        errors = np.zeros((stop - start, N))
        for i in range(start, stop):
            codes[i] = encode(left[i].astype(np.float32), scales[g], bits)
            errors[i - start] = (left[i] - decode(codes[i], scales[g], bits)) / upper[i, i]
            left[i + 1 : stop] -= upper[i, i + 1 : stop, None] * errors[i - start]
        left[stop:] -= upper[start:stop, stop:].T @ errors
    return codes, scales
