"""The networks of the image codec: windows of pixels -> latents, neighbourhoods of latents -> pixels.

*Form* says how the pixels of a window vary along their strongest colour direction, whatever that colour is; *colour* says which
colours these are. A patch is painted as a soft blend of a few colour ramps: the blend follows from the form latents alone, the ramps
from both. So one digit carries shape and the other colour, and a decoder of codes can learn them apart. Every function takes numpy
or jax arrays and gives the same kind back.

Shapes: B images, H x W pixels, L codes (grid in row-major order), S pixels of a window, P pixels of a patch, K blended layers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from pollux.tokens.codec.config import CodecConfig

Array = Any  # numpy.ndarray or jax.Array
Params = dict[str, Any]  # network -> layer -> {"weight" [in, out], "bias" [out]}

_RAMPS = 3  # a colour layer is constant + row slope + column slope
_FAINT = 0.03  # contrast (0..1) under which the variation of a window counts as noise


def widths(config: CodecConfig) -> dict[str, tuple[int, ...]]:
    """Sizes of the layers of every network, input first."""
    form, colour, hidden, window = len(config.form_levels), len(config.colour_levels), config.hidden, config.window**2
    return {
        "form_encoder": (window, hidden, hidden, form),
        "colour_encoder": (window, hidden, colour),  # 3 colours and the form, at half resolution
        "blend": (9 * form, hidden, hidden, config.patch**2 * config.layers),
        "ramps": (9 * (form + colour), hidden, hidden, config.layers * 3 * _RAMPS),
    }


def init(config: CodecConfig, seed: int) -> Params:
    """Float32 weights of variance 1/fan-in and zero biases; a function of the seed."""
    rng = np.random.default_rng(seed)

    def layer(rows: int, columns: int) -> dict[str, np.ndarray]:
        return {"weight": rng.normal(0, rows**-0.5, (rows, columns)).astype(np.float32), "bias": np.zeros(columns, np.float32)}

    return {
        network: {str(i): layer(a, b) for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))}
        for network, sizes in widths(config).items()
    }


def latents(params: Params, pixels: Array, config: CodecConfig) -> tuple[Array, Array]:
    """Pixels float32 [B, H, W, 3] in [0, 1] -> unbounded form latents [B, L, form dims] and colour latents [B, L, colour dims]."""
    xp = pixels.__array_namespace__()
    window = _windows(pixels, config)
    form = principal_variation(window, pixels.mean((1, 2)))
    channels = xp.concatenate([window * 2 - 1, form[:, :, None]], 2)
    half = config.window // 2
    coarse = channels.reshape(*channels.shape[:3], half, 2, half, 2).mean((4, 6)).reshape(len(pixels), config.num_codes, -1)
    return _perceptron(params["form_encoder"], form), _perceptron(params["colour_encoder"], coarse)


def principal_variation(window: Array, centre: Array) -> Array:
    """Project windows [B, L, 3, S] on their principal colour axis -> [B, L, S] of mean 0 and, unless faint, variance 1.

    The axis points away from `centre`, a colour [B, 3] per image, so that the sign does not flip between the patches of one object.
    """
    xp = window.__array_namespace__()
    mean = window.mean(-1, keepdims=True)
    deviation = window - mean
    covariance = deviation @ deviation.swapaxes(2, 3) / window.shape[-1]  # [B, L, 3, 3]
    strongest = xp.argmax(xp.diagonal(covariance, axis1=2, axis2=3), -1)[..., None, None]
    axis = xp.take_along_axis(covariance, strongest, 2)  # [B, L, 1, 3]
    for _ in range(6):  # power iteration
        axis = axis @ covariance
        axis = axis / (xp.sqrt((axis**2).sum(-1, keepdims=True)) + 1e-12)
    inward = axis @ (mean - centre[:, None, :, None]) < 0
    variation = (xp.where(inward, -axis, axis) @ deviation)[:, :, 0]
    return variation / (xp.sqrt((variation**2).mean(-1, keepdims=True)) + _FAINT)


def paint(params: Params, form: Array, colour: Array, config: CodecConfig) -> Array:
    """Latents in [-1, 1], form [B, L, form dims] and colour [B, L, colour dims] -> pixels float32 [B, H, W, 3], about [0, 1]."""
    xp = form.__array_namespace__()
    form = _neighbourhoods(form, config)
    both = xp.concatenate([form, _neighbourhoods(colour, config)], -1)
    (rows, columns), patch, layers = config.grid, config.patch, config.layers
    B, L = form.shape[:2]
    logits = _perceptron(params["blend"], form).reshape(B, L, layers, patch * patch)
    share = xp.exp(logits - logits.max(2, keepdims=True))
    share = share / share.sum(2, keepdims=True)
    ramps = _perceptron(params["ramps"], both).reshape(B, L, layers, _RAMPS, 3, 1)
    slope = ((np.arange(patch, dtype=np.float32) + 0.5) / patch * 2 - 1) * np.ones((patch, patch), np.float32)
    layer = ramps[:, :, :, 0] + ramps[:, :, :, 1] * slope.T.reshape(-1) + ramps[:, :, :, 2] * slope.reshape(-1)  # [B, L, K, 3, P]
    patches = (share[:, :, :, None] * layer).sum(2) * 0.5 + 0.5
    return patches.reshape(B, rows, columns, 3, patch, patch).transpose(0, 1, 4, 2, 5, 3).reshape(B, *config.size, 3)


def _perceptron(layers: Params, x: Array) -> Array:
    for i in range(len(layers)):
        if i > 0:
            x = x.__array_namespace__().maximum(x, 0)
        x = x @ layers[str(i)]["weight"] + layers[str(i)]["bias"]
    return x


def _windows(pixels: Array, config: CodecConfig) -> Array:
    """Pixels [B, H, W, 3] -> [B, L, 3, S], the window around every patch; pixels beyond the border repeat the border."""
    index = _window_index(config.size, config.patch, config.window)
    return pixels.__array_namespace__().take(pixels.reshape(len(pixels), -1), index, axis=1)


@lru_cache
def _window_index(size: tuple[int, int], patch: int, window: int) -> np.ndarray:
    """int32 [L, 3, S]: position in the flattened [H, W, 3] image of every value of every window."""
    margin = (window - patch) // 2
    rows, columns = (np.clip(np.arange(0, n, patch)[:, None] + np.arange(-margin, patch + margin), 0, n - 1) for n in size)
    index = rows[:, None, None, :, None] * size[1] + columns[None, :, None, None, :]
    return (index * 3 + np.arange(3)[:, None, None]).reshape(-1, 3, window * window).astype(np.int32)


def _neighbourhoods(latent: Array, config: CodecConfig) -> Array:
    """[B, L, d] -> [B, L, 9 d]: every latent with its eight neighbours, zeros beyond the border."""
    xp = latent.__array_namespace__()
    rows, columns = config.grid
    grid = xp.pad(latent.reshape(len(latent), rows, columns, -1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = [grid[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return xp.concatenate(around, -1).reshape(len(latent), rows * columns, -1)
