"""The audio tower of Gemma 4: convolutions that make one token of four log-mel frames, then a Conformer (Gulati et al. 2020).

Several sounds share the slots of a row, so whatever looks at neighbours (convolutions, attention) asks whether they are of the same
sound. Shapes: G groups, N soft tokens, 4 N frames of M mels, C channels, W width, N heads of H, B blocks of attention.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from pollux.model.config import AudioTower
from pollux.model.layers import layer_norm, rms_norm
from pollux.model.matmul import matmul
from pollux.model.spec import Params, Spec, stack
from pollux.model.vision import apply_linear, linear
from pollux.tokens.sequence import SoftBatch

NORM_EPS = 1e-6
QUERIES = 32  # of a block in attention


def declare(t: AudioTower) -> dict[str, Any]:
    d = t.width
    feed_forward = {
        "pre_norm": Spec((d,), (None,), 1.0),
        "up": linear(d, 4 * d, ("embed", "mlp"), t.clipped),
        "down": linear(4 * d, d, ("mlp", "embed"), t.clipped),
        "post_norm": Spec((d,), (None,), 1.0),
    }
    attention = {
        "pre_norm": Spec((d,), (None,), 1.0),
        "q": linear(d, d, ("embed", "heads"), t.clipped),
        "k": linear(d, d, ("embed", "heads"), t.clipped),
        "v": linear(d, d, ("embed", "heads"), t.clipped),
        "o": linear(d, d, ("heads", "embed"), t.clipped),
        "distance": Spec((d, d), ("embed", "heads")),
        "head_scale": Spec((d // t.num_heads,), (None,), 0.0),
        "post_norm": Spec((d,), (None,), 1.0),
    }
    convolution = {
        "pre_norm": Spec((d,), (None,), 1.0),
        "start": linear(d, 2 * d, ("embed", None), t.clipped),
        "kernel": Spec((t.kernel, d), (None, "embed")),
        "norm": Spec((d,), (None,), 1.0),
        "end": linear(d, d, (None, "embed"), t.clipped),
    }
    layer = {"feed_forward_1": feed_forward, "attention": attention, "convolution": convolution, "feed_forward_2": feed_forward}
    first, second = t.channels
    return {
        "halving_0": Spec((first, 1, 3, 3), (None, None, None, None), "normal", 9),  # out, in, time, mels
        "halving_0_norm": Spec((first,), (None,), 1.0),
        "halving_1": Spec((second, first, 3, 3), (None, None, None, None), "normal", 9 * first),
        "halving_1_norm": Spec((second,), (None,), 1.0),
        "in": Spec((t.mels // 4 * second, d), ("features", "embed")),
        "layers": stack(layer | {"out_norm": Spec((d,), (None,), 1.0)}, t.num_layers),
        "out": Spec((d, t.out), ("embed", None)),
        "out_bias": Spec((t.out,), (None,), 0.0),
    }


def encode(params: Params, t: AudioTower, batch: SoftBatch, eps: float, dtype) -> jax.Array:
    """Log-mel frames, features [G, N, 4 M] -> [G, N, out]. coord: how many of a token's 4 frames are there, and its place in the sound;
    a token at place 0 begins the next sound."""
    G, N, _ = batch.features.shape
    with jax.named_scope("audio_tower"):
        sound = jnp.cumsum(batch.coord[..., 1] == 0, 1)
        frames = jnp.asarray(batch.features).astype(dtype).reshape(G, 4 * N, t.mels, 1)
        x = _halve(params, 0, frames, 4, batch.coord)
        x = _halve(params, 1, x, 2, batch.coord)
        x = matmul(x.reshape(G, N, -1), params["in"])
        x, _ = jax.lax.scan(lambda x, layer: (_block(layer, t, x, sound, eps), None), x, params["layers"])
        return matmul(x, params["out"]) + params["out_bias"].astype(x.dtype)


def _halve(params: Params, number: int, x_GTMC: jax.Array, frames: int, coord_GN2: jax.Array) -> jax.Array:
    """A 3 x 3 convolution with stride 2 over time and mels, norm, ReLU: [G, frames N, M, C] -> [G, frames/2 N, M/2, C'].

    frames: a token has so many; of the last one of a sound some may be missing, and count as zeros.
    """
    G, T, M, C = x_GTMC.shape
    there = -(-coord_GN2[..., :1] * frames // 4) > jnp.arange(frames)
    x = x_GTMC * there.reshape(G, T, 1, 1).astype(x_GTMC.dtype)
    even, odd = x[:, ::2], x[:, 1::2]
    first_of_sound = (coord_GN2[..., 1:] == 0) & (jnp.arange(frames // 2) == 0)
    before = jnp.pad(odd, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    before *= 1 - first_of_sound.reshape(G, -1, 1, 1).astype(x.dtype)
    three = jnp.stack([before, even, odd], 3).reshape(-1, M, 3 * C)
    kernel = params[f"halving_{number}"].astype(x.dtype)  # out, in, time, mels -> mels, (time, in), out
    kernel = kernel.transpose(3, 2, 1, 0).reshape(3, 3 * C, -1)
    y = jax.lax.conv_general_dilated(three, kernel, (2,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC"))
    y = layer_norm(y, params[f"halving_{number}_norm"], jnp.zeros(()), NORM_EPS)
    return jax.nn.relu(y).reshape(G, T // 2, M // 2, -1)


def _block(layer: Params, t: AudioTower, x: jax.Array, sound: jax.Array, eps: float) -> jax.Array:
    x = _feed_forward(layer["feed_forward_1"], t, x)
    x += rms_norm(_attention(layer["attention"], t, x, sound), layer["attention"]["post_norm"], NORM_EPS)
    x += _convolution(layer["convolution"], t, x, sound, eps)
    return rms_norm(_feed_forward(layer["feed_forward_2"], t, x), layer["out_norm"], NORM_EPS)


def _feed_forward(params: Params, t: AudioTower, x: jax.Array) -> jax.Array:
    h = jax.nn.silu(apply_linear(params["up"], rms_norm(x, params["pre_norm"], NORM_EPS)))
    return x + rms_norm(apply_linear(params["down"], h), params["post_norm"], NORM_EPS) * jnp.asarray(t.residual_weight, x.dtype)


def _attention(params: Params, t: AudioTower, x_GNW: jax.Array, sound_GN: jax.Array) -> jax.Array:
    """Softmax of capped content and distance scores, in float32 (Dai et al. 2019, without the two global biases).

    Queries go in blocks of Q; the keys of a block, S = t.left - 2 + Q, begin with what its first query sees.
    """
    G, N, W = x_GNW.shape
    size, before = W // t.num_heads, t.left - 2
    h = rms_norm(x_GNW, params["pre_norm"], NORM_EPS)
    q, k, v = (apply_linear(params[name], h).astype(jnp.float32).reshape(G, N, t.num_heads, size) for name in "qkv")
    q *= size**-0.5 / math.log(2) * jax.nn.softplus(params["head_scale"].astype(jnp.float32))
    k *= math.log(1 + math.e) / math.log(2)
    block = max(before, min(N, QUERIES))
    q_GBQNH, sound_GBQ = (_blocks(x, block) for x in (q, sound_GN))
    k_GBSNH, v_GBSNH, keys_GBS = (_with_context(x, block, before) for x in (k, v, sound_GN))
    distance = jnp.arange(block)[:, None] + before - jnp.arange(before + block)
    most = (t.chunk + t.left - 1) // 2
    embedded = matmul(_sinusoids(jnp.arange(most + 1), W).astype(x_GNW.dtype), params["distance"]).astype(jnp.float32)
    by_distance = jnp.einsum("gbqnh,dnh->gbnqd", q_GBQNH, embedded.reshape(-1, t.num_heads, size))
    at = distance + most - (t.left - 1)  # as the chunks of the original count it
    there = (at >= 0) & (at <= most)
    by_distance = jnp.take_along_axis(by_distance, jnp.clip(at, 0, most)[None, None, None], 4)
    scores = jnp.einsum("gbqnh,gbsnh->gbnqs", q_GBQNH, k_GBSNH) + jnp.where(there, by_distance, 0.0)
    scores = t.logit_cap * jnp.tanh(scores / t.logit_cap)
    seen = (sound_GBQ[..., None] == keys_GBS[..., None, :]) & (distance >= 0) & (distance < t.left - 1)
    p = jax.nn.softmax(jnp.where(seen[:, :, None], scores, -1e9), -1)
    out = jnp.einsum("gbnqs,gbsnh->gbqnh", p, v_GBSNH).reshape(G, -1, W)[:, :N]
    return apply_linear(params["o"], out.astype(x_GNW.dtype))


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """[G, N, ...] -> [G, blocks, block, ...], filled up with zeros; no sound has number 0."""
    padding = [(0, 0), (0, -x.shape[1] % block), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(x, padding).reshape(x.shape[0], -1, block, *x.shape[2:])


def _with_context(x: jax.Array, block: int, before: int) -> jax.Array:
    """[G, N, ...] -> [G, blocks, before + block, ...]: each block after the last `before` <= block of the one before it."""
    blocks = _blocks(x, block)
    earlier = jnp.pad(blocks, [(0, 0), (1, 0), *[(0, 0)] * (blocks.ndim - 2)])[:, :-1]
    return jnp.concatenate([earlier[:, :, block - before :], blocks], 2)


def _sinusoids(position: jax.Array, width: int) -> jax.Array:
    """[..., width]: sines, then cosines, of timescales 1 to 10,000."""
    scale = 10_000.0 ** (-jnp.arange(width // 2) / max(width // 2 - 1, 1))
    angle = position[:, None] * scale
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def _convolution(params: Params, t: AudioTower, x_GNW: jax.Array, sound: jax.Array, eps: float) -> jax.Array:
    """Gated linear unit, a causal convolution of each channel over time, norm, SiLU, linear."""
    first, gate = jnp.split(apply_linear(params["start"], rms_norm(x_GNW, params["pre_norm"], eps)), 2, -1)
    h = first * jax.nn.sigmoid(gate)
    kernel, total = params["kernel"].astype(h.dtype), jnp.zeros_like(h)
    for back in range(min(t.kernel, h.shape[1])):
        shifted = jnp.pad(h, ((0, 0), (back, 0), (0, 0)))[:, : h.shape[1]]
        same = jnp.pad(sound, ((0, 0), (back, 0)))[:, : h.shape[1]] == sound
        total += shifted * same[..., None].astype(h.dtype) * kernel[t.kernel - 1 - back]
    return apply_linear(params["end"], jax.nn.silu(rms_norm(total, params["norm"], eps)))
