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
from pollux.model.params import Params, Spec, matrix
from pollux.model.quantized import INPUTS, OUTPUTS, Quantized, pack
from pollux.model.rounding import best_scales, decode, encode, matrices, nearest
from pollux.model.weight import Stacked
from pollux.tokens.pack import Packer, sizes
from pollux.tokens.sequence import Batch, Sequence

Method = Literal["gptq", "nearest"]
DAMPING = 0.01  # of the mean second moment
ROWS = 4  # of a batch of calibration documents, each as long as the longest of them
PART = 2**24  # weights that are rounded to the nearest at a time
MOMENT_BYTES = 2**31  # of second moments that are gathered in one pass over the calibration documents


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
    last = _unembedding(model.config)
    chosen = dict(sorted(chosen.items(), key=lambda item: item[0] == last))
    if not chosen:
        raise ValueError("the model is quantised already; quantise the one it was made of")
    sequences = list(calibration) if method == "gptq" else []
    if method == "gptq" and not sequences:
        raise ValueError("gptq needs calibration documents; without them use the method nearest")
    done: dict[str, Quantized] = {}
    params = model.params
    for names in _passes({name: spec for name, spec in chosen.items() if method == "gptq" and _is_observed(model.config, name, spec)}):
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


def _unembedding(config: ModelConfig) -> str:
    return "embed" if config.tied else "unembed"


def _is_observed(config: ModelConfig, name: str, spec: Spec) -> bool:
    """Experts read ragged rows, and an embedding table that is not the unembedding too is read by rows: they are rounded to the nearest."""
    return "experts" not in spec.axes and ("vocab" not in spec.axes or name == _unembedding(config))


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
        raise AssertionError("what an unembedding reads is taken from the last hidden states")

    def product(self, x: jax.Array) -> jax.Array:
        self.moments.add(self.index, np.asarray(x))
        return jnp.matmul(x, self.dense(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def observe(params: Params, model: Model, names: list[str], sequences: list[Sequence]) -> dict[str, Moments]:
    """What the named matrices read in the sequences, member by member of each stack (-1: not a stack)."""
    moments = {name: Moments() for name in names}
    unembedding = moments.get(_unembedding(model.config))

    def watched(path, leaf):
        own = moments.get(tensor_name(path))
        return leaf if own is None or own is unembedding else Observed(leaf, own)

    observing = jax.tree_util.tree_map_with_path(watched, params, is_leaf=_is_leaf)
    for batch in _batches(model, sequences):
        inputs, targets = batch.inputs, batch.targets
        tokens = {inputs.ids.shape: inputs.segment > 0}
        media = {soft.index.shape: soft.index < inputs.ids.size for soft in inputs.soft.values()}
        for name in names:
            if moments[name] is not unembedding:
                moments[name].read = media if name.startswith("soft.") else tokens
        with jax.disable_jit():
            hidden = decoder.hidden(observing, model.config, inputs, dtype=cache_dtype(params)).hidden
        if unembedding is not None:
            rows, slots = np.nonzero(targets.weight)
            unembedding.add(-1, np.asarray(hidden)[rows, targets.index[rows, slots]])
    return moments


def _batches(model: Model, sequences: list[Sequence]) -> Iterator[Batch]:
    """The sequences, packed; all batches have one shape, for outside jit every operation is compiled for every shape."""
    most: Counter[str] = Counter()
    for sequence in sequences:
        most |= sizes(sequence)
    room = {str(soft.name): ROWS * most[soft.name] for soft in model.config.soft_inputs if most[soft.name]}
    packer = Packer(ROWS, max(2, most["tokens"]), max(1, most["targets"]), room, model.tokens_config)
    for sequence in sequences:
        if not packer.add(sequence):
            yield packer.take()
            packer.add(sequence)
    yield packer.take()


def _quantize(leaf: jax.Array, spec: Spec, bits: int, moments: Moments | None = None) -> Quantized:
    """One matrix or a stack of them; only a part of it is there in float32 at a time."""
    inputs, outputs = matrix(spec)
    stored = np.asarray(leaf)
    if spec.axes[-2] == "vocab":
        stored = np.swapaxes(stored, -1, -2)
    step = max(OUTPUTS, PART // inputs // OUTPUTS * OUTPUTS)
    packed = []
    for i, member in enumerate(stored.reshape(-1, inputs, outputs)):
        seen = None if moments is None else moments.sums.get(i if stored.ndim > 2 else -1)
        factor = None if seen is None else inverse_factor(seen)
        parts = (member[:, start : start + step].astype(np.float32) for start in range(0, outputs, step))
        chosen = (nearest(part, bits) if factor is None else gptq(part, factor, bits) for part in parts)
        packed.append(np.concatenate([pack(codes, scales, bits) for codes, scales in chosen]))
    whole = np.stack(packed).reshape(*stored.shape[:-2], *packed[0].shape)
    return Quantized(jnp.asarray(whole), inputs, outputs)


def inverse_factor(moments_KK: np.ndarray) -> np.ndarray:
    """Upper triangular U float64 [K, K] with U^T U the inverse of the damped second moments; its row i, divided by U_ii, is what rounding
    input i does to those after it. Inputs that were never read have an infinite U_ii: what they hold does not matter."""
    moments = moments_KK.astype(np.float64)
    unread = np.diag(moments) == 0
    moments[unread, unread] = 1
    moments[np.diag_indices(len(moments))] += DAMPING * np.mean(np.diag(moments))
    lower = cholesky(moments, lower=True)
    inverse = solve_triangular(lower, np.eye(len(moments)), lower=True)
    upper = cholesky(inverse.T @ inverse)
    upper[unread, unread] = np.inf
    return upper


def gptq(weight_KN: np.ndarray, factor_KK: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [K, N] and scales float16 [G, N] that keep x W for x of the second moments behind `inverse_factor` (Frantar et al. 2022,
    algorithm 1).

    Groups take their scales when their turn comes, for the weights as the groups before have moved them.
    """
    K, N = weight_KN.shape
    left = np.where(np.isinf(np.diag(factor_KK))[:, None], 0, weight_KN.astype(np.float64))
    codes, scales = np.zeros((K, N), np.uint8), np.zeros((-(-K // INPUTS), N), np.float16)
    importance = (1 / np.diag(factor_KK) ** 2).astype(np.float32)
    for g, start in enumerate(range(0, K, INPUTS)):
        stop = min(start + INPUTS, K)
        group = left[start:stop].astype(np.float32)
        scales[g] = best_scales(group, importance[start:stop, None], bits)
        errors = np.zeros((stop - start, N))
        for i in range(start, stop):
            codes[i] = encode(left[i].astype(np.float32), scales[g], bits)
            errors[i - start] = (left[i] - decode(codes[i], scales[g], bits)) / factor_KK[i, i]
            left[i + 1 : stop] -= factor_KK[i, i + 1 : stop, None] * errors[i - start]
        left[stop:] -= factor_KK[start:stop, stop:].T @ errors
    return codes, scales
