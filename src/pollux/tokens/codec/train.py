"""Training of the image codec: reconstruction of pictures through straight-through FSQ, AdamW, one jitted step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pollux.tokens.codec import fsq, model
from pollux.tokens.codec.codec import Codec
from pollux.tokens.codec.config import CodecConfig, CodecTraining

_WARM_UP = 0.02  # share of the run in which the learning rate rises
_PLATEAU = 0.4  # share of the run after which it falls linearly to 0
_ADAM = optax.scale_by_adam(b2=0.99)


@dataclass(frozen=True)
class Progress:
    """Handed to the callback after every step."""

    step: int  # steps done
    done: float  # share of the run, 0..1
    loss: float
    psnr: float  # dB, of the batch


def train(
    images: Iterator[np.ndarray],
    config: CodecConfig,
    training: CodecTraining,
    progress: Callable[[Progress], None] | None = None,
) -> Codec:
    """Train a codec on batches uint8 [B, H, W, 3], all of one size B.

    Without `training.seconds` the result is a function of the batches, the configs and the seed. Raises ValueError if a batch has
    another picture size or the iterator ends early.
    """
    params = jax.tree.map(jnp.asarray, model.init(config, training.seed))
    state = _ADAM.init(params)
    report = progress or (lambda _: None)
    start = time.monotonic()
    previous = None
    for step in range(training.steps):
        done = step / training.steps
        if training.seconds is not None:
            done = max(done, (time.monotonic() - start) / training.seconds)
        if done >= 1:
            break
        batch = next(images, None)
        if batch is None:
            raise ValueError(f"the codec's training pictures ended after {step} of {training.steps} steps")
        if batch.dtype != np.uint8 or batch.shape[1:] != (*config.size, 3):
            raise ValueError(
                f"codec training needs uint8 [B, {config.size[0]}, {config.size[1]}, 3], got {batch.dtype} {list(batch.shape)}"
            )
        rate = training.learning_rate * min((done + 1e-3) / _WARM_UP, (1 - done) / (1 - _PLATEAU), 1)
        params, state, value = _update(params, state, batch, rate, rate * training.weight_decay, config)
        if previous is not None:  # one step late: dispatch does not wait, and the clock stays within a step of the work
            report(_progress(*previous))
        previous = (step + 1, done, value)
    if previous is not None:
        report(_progress(*previous))
    return Codec(config, jax.tree.map(np.asarray, params))


def loss(params: model.Params, images: jax.Array, config: CodecConfig) -> jax.Array:
    """Mean squared error, of 1, of reconstructing uint8 [B, H, W, 3] with straight-through codes."""
    pixels = images.astype(jnp.float32) / 255
    latents = model.latents(params, pixels, config)
    form, colour = (fsq.to_unit(fsq.quantise_straight_through(z, n), n) for z, n in zip(latents, config.levels, strict=True))
    return ((model.paint(params, form, colour, config) - pixels) ** 2).mean()


@partial(jax.jit, static_argnames="config", donate_argnames=("params", "state"))
def _update(params: Any, state: Any, images: jax.Array, rate: float, decay: float, config: CodecConfig):
    value, gradient = jax.value_and_grad(loss)(params, images, config)
    direction, state = _ADAM.update(gradient, state)
    params = jax.tree.map(lambda p, d: p - rate * d - (decay * p if p.ndim > 1 else 0), params, direction)
    return params, state, value


def _progress(step: int, done: float, value: jax.Array) -> Progress:
    return Progress(step, done, float(value), float(-10 * np.log10(max(float(value), 1e-12))))
