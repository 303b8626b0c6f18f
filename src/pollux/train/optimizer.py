"""Optimisers as optax transformations over the stacked parameters of a model: Adafactor, AdamW, and Muon with Adam for the rest.

A leaf may hold a stack of equal parameters (axes "layers", "experts"). Everything that depends on a parameter's shape or size, such as the
factored moments, the relative step and the orthogonalisation, is applied to each member of the stack, so a scanned model trains like an
unrolled one. All updates are for a schedule factor of 1; the step multiplies them by the factor. Frozen parameters have no optimiser
state and updates of 0.

Shapes: S members of a stack, I rows, O columns.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pollux.model.folder import tensor_name
from pollux.model.params import Params, Spec, is_spec, map_specs
from pollux.train.config import OptimizerConfig

STACKED = ("layers", "experts")
TABLES = ("vocab", "grid")  # embeddings: one row is read at a time
# Quintic of Jordan 2024: the largest slope at zero that keeps singular values within about [0.7, 1.2]
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def _member(spec: Spec) -> tuple[int, ...]:
    """Shape of one member of the stack."""
    return tuple(size for size, axis in zip(spec.shape, spec.axes, strict=True) if axis not in STACKED)


def is_matrix(spec: Spec) -> bool:
    """A linear map, not a table."""
    return len(_member(spec)) == 2 and not set(TABLES) & set(spec.axes)


def build(config: OptimizerConfig, specs: Params) -> optax.GradientTransformation:
    """The transformation from gradients to updates at a schedule factor of 1, of parameters so declared.

    Raises ValueError if `frozen` names nothing or all.
    """
    fixed = frozen(config, specs)
    moving = [spec for spec, stays in zip(_leaves(specs), jax.tree.leaves(fixed), strict=True) if not stays]
    transformation = _transformation(config, map_specs(is_matrix, specs), moving)
    return optax.partition({False: transformation, True: optax.set_to_zero()}, fixed) if config.frozen else transformation


def frozen(config: OptimizerConfig, specs: Params) -> Params:
    """Whether each parameter keeps its value (bool). Raises ValueError if `config.frozen` names nothing or all."""
    names = [tensor_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)]
    matches = {prefix: [f"{name}.".startswith(f"{prefix}.") for name in names] for prefix in config.frozen}
    for prefix, found in matches.items():
        if not any(found):
            raise ValueError(f"optimizer.frozen names {prefix!r}, but no parameter's path begins so; there are {', '.join(names)}")
    fixed = [any(columns) for columns in zip(*matches.values(), strict=True)] if matches else [False] * len(names)
    if all(fixed):
        raise ValueError(f"optimizer.frozen {config.frozen} leaves no parameter to train")
    return jax.tree.unflatten(jax.tree.structure(specs, is_leaf=is_spec), fixed)


def _leaves(specs: Params) -> list[Spec]:
    return jax.tree.leaves(specs, is_leaf=is_spec)


def _transformation(config: OptimizerConfig, matrices: Params, moving: list[Spec]) -> optax.GradientTransformation:
    """matrices: which parameters are linear maps. moving: those that are trained, in the order of the tree."""
    decay = optax.add_decayed_weights(config.weight_decay, matrices) if config.weight_decay else optax.identity()
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    if config.kind == "adafactor":
        return optax.chain(_adafactor(moving), decay, optax.scale(-config.learning_rate))
    if config.kind == "adamw":
        return optax.chain(adam, decay, optax.scale(-config.learning_rate))
    momentum = optax.trace(config.momentum, nesterov=True)
    decay = optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity()
    return optax.partition(
        {
            True: optax.chain(momentum, _orthogonal_updates(), decay, optax.scale(-config.matrix_learning_rate)),
            False: optax.chain(adam, optax.scale(-config.learning_rate)),
        },
        matrices,
    )


def _adafactor(specs: list[Spec]) -> optax.GradientTransformation:
    """max(eps2, RMS(x)) * U / max(1, RMS(U) / d) per member of a stack (Shazeer & Stern 2018, algorithms 4 and 5, without momentum).

    optax's own parts do the arithmetic; here they see one parameter at a time, of any size, where `optax.adafactor` would
    factor only sides of 128 and more, mix the layers of a stack in one RMS, and leave the relative step out.
    """
    one = optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=1, epsilon=1e-30),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(1e-3),
    )

    def members(tree: Params) -> list[jax.Array]:
        leaves = jax.tree.leaves(tree)
        return [leaf.reshape(-1, *_member(spec)) for leaf, spec in zip(leaves, specs, strict=True)]

    def init(params: Params) -> list[Any]:
        return [jax.vmap(one.init)(x) for x in members(params)]

    def update(updates: Params, state: list[Any], params: Params | None = None) -> tuple[Params, list[Any]]:
        assert params is not None, "the relative step needs the parameters"
        pairs = [jax.vmap(one.update)(g, s, x) for g, s, x in zip(members(updates), state, members(params), strict=True)]
        flat = [u.reshape(spec.shape) for (u, _), spec in zip(pairs, specs, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(updates), flat), [s for _, s in pairs]

    return optax.GradientTransformation(init, update)


def orthogonalize(x_SIO: jax.Array) -> jax.Array:
    """The nearest (semi-)orthogonal matrix U Vᵀ of each x = U Σ Vᵀ, to about 30 %, by Newton-Schulz iteration (Jordan 2024).

    The iteration X <- (a + b A + c A²) X with A = X Xᵀ stays in the Gram matrix of the shorter side: the factors commute, so they
    are multiplied up first and applied to X once, which for I = 4 O halves the cost. The Gram matrix squares the
    condition number, hence true float32 products on every backend.
    """
    wide = x_SIO.shape[1] <= x_SIO.shape[2]
    x = x_SIO if wide else x_SIO.mT
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    with jax.default_matmul_precision("highest"):
        gram = x @ x.mT
        product = None
        for step in range(NEWTON_SCHULZ_STEPS):
            factor = a * jnp.eye(gram.shape[-1]) + b * gram + c * (gram @ gram)
            product = factor if product is None else factor @ product
            if step + 1 < NEWTON_SCHULZ_STEPS:
                gram = factor @ (gram @ factor)
        x = product @ x
    return x if wide else x.mT


def _orthogonal_updates() -> optax.GradientTransformation:
    """Orthogonalised matrices of RMS 0.2, the usual RMS of an Adam update (Liu et al. 2025, eq. 4).

    Leaves of equal shape, up to a transposition, are stacked: few large batched products instead of many small ones.
    """

    def update(updates, state, params=None):
        del params
        leaves, structure = jax.tree.flatten(updates)
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, leaf in enumerate(leaves):
            by_shape.setdefault((min(leaf.shape[-2:]), max(leaf.shape[-2:])), []).append(i)
        for (short, long), indices in by_shape.items():
            wide = [leaves[i] if leaves[i].shape[-2] == short else leaves[i].mT for i in indices]
            counts = [math.prod(x.shape[:-2]) for x in wide]
            joined = jnp.concatenate([x.reshape(-1, short, long) for x in wide]).astype(jnp.float32)
            result = orthogonalize(joined) * (0.2 * math.sqrt(long))
            start = 0
            for i, x, count in zip(indices, wide, counts, strict=True):
                y = result[start : start + count].reshape(x.shape)
                leaves[i] = y if leaves[i].shape[-2] == short else y.mT
                start += count
        return jax.tree.unflatten(structure, leaves), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
