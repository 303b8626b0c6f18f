"""Embedders against torch and float64 numpy: projections and their gradients, stems, form and colours, what a clip shares with pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import rms_norm as rms_norm_64
from reference import torch

from pollux.model.config import AttentionConfig, FeedForwardConfig, LayerConfig, ModelConfig, SoftInputConfig
from pollux.model.embedders import FAINT, PLACE, embed_soft, form
from pollux.model.params import init
from pollux.tokens.sequence import SoftBatch

rng = np.random.default_rng(0)


def convolved(params, soft, channels_last):
    """A stem by torch: [N, side, side, C] -> float64 [N, features]."""
    x = torch.tensor(channels_last).permute(0, 3, 1, 2)
    for i, (kernel, stride, channels) in enumerate(soft.stem):
        w = torch.tensor(np.asarray(params[f"stem_{i}"], np.float64)).reshape(kernel, kernel, -1, channels).permute(3, 2, 0, 1)
        x = torch.relu(torch.nn.functional.conv2d(x, w, stride=stride)) ** 2
    return x.permute(0, 2, 3, 1).flatten(1).numpy()


def form_64(pixels):
    """[side, side, 3 c] -> [side, side, c] by an eigenvalue decomposition."""
    now, change = pixels[..., :3], pixels[..., 3:]
    seen = np.concatenate([now.reshape(-1, 3)] + ([(now - change).reshape(-1, 3)] if change.size else []))
    mean = seen.mean(0)
    values, vectors = np.linalg.eigh(np.cov((seen - mean).T, bias=True))
    axis = vectors[:, -1] * np.sign(vectors[:, -1] @ mean) / (np.sqrt(values[-1]) + FAINT)
    return np.stack([(now - mean) @ axis] + ([change @ axis] if change.size else []), -1)


def patches(n, side, changes=0):
    """Patches whose colours vary mostly along one direction of their own: [1, n, side, side, 3 (1 + changes)]."""
    strength, direction = rng.normal(size=(1, n, side, side, 1)), rng.normal(size=(1, n, 1, 1, 3))
    now = 2 * strength * direction + 0.2 * rng.normal(size=(1, n, side, side, 3)) + direction
    moved = 2 * rng.normal(size=strength.shape) * direction
    return np.concatenate([now, *[moved] * changes], -1).astype(np.float32)


def batch_of(features, rows=1):
    features = jnp.float32(features.reshape(rows, features.shape[1], -1))
    n = features.shape[1]
    return SoftBatch(features, jnp.zeros((rows, n), jnp.int32), jnp.int32(np.indices((rows, n)).transpose(1, 2, 0)))


@pytest.mark.parametrize("changes", [0, 1])
def test_form_is_the_projection_on_the_first_principal_axis_of_the_colours(changes):
    pixels = patches(4, 6, changes)
    expected = np.stack([form_64(p.astype(np.float64)) for p in pixels[0]])
    np.testing.assert_allclose(form(jnp.asarray(pixels))[0], expected, rtol=1e-3, atol=2e-3)


def test_form_is_blind_to_which_colours_vary():
    pixels = patches(3, 6)
    turned = pixels @ np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    np.testing.assert_allclose(form(jnp.asarray(turned)), form(jnp.asarray(pixels)), rtol=1e-3, atol=2e-3)


COLOURED = SoftInputConfig("image", 8 * 8 * 3, grid=4, stem=((4, 2, 5), (2, 1, 6)), colour_grid=2, in_norm=False)
MOVING = SoftInputConfig("video", 8 * 8 * 6, stem=((4, 2, 5), (2, 1, 6)), in_channels=6, shares="image", in_norm=False)


def test_form_and_colours_are_projected_apart_and_count_alike():
    config = ModelConfig("coloured", 8, 6, (), 0, soft_inputs=(COLOURED,))
    params = init(config, jax.random.key(0))["soft"]
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["image"])
    pixels = patches(3, 8)
    shape = convolved(p, COLOURED, np.stack([form_64(x.astype(np.float64)) for x in pixels[0]])) @ p["out"]
    colours = pixels[0].astype(np.float64).reshape(3, 2, 4, 2, 4, 3).mean((2, 4)).reshape(3, -1) @ p["colours"]
    both = rms_norm_64(shape, 1, config.norm_eps) + rms_norm_64(colours, 1, config.norm_eps)
    expected = rms_norm_64(both, p["out_norm"]["scale"], config.norm_eps) + PLACE * (p["row"][0] + p["column"][:3])
    np.testing.assert_allclose(embed_soft(params, config, COLOURED, batch_of(pixels), jnp.float32)[0], expected, rtol=1e-2, atol=1e-2)


def test_a_frame_where_nothing_changed_is_seen_as_a_picture_and_a_change_is_added():
    config = ModelConfig("moving", 8, 6, (), 0, soft_inputs=(COLOURED, MOVING))
    params = init(config, jax.random.key(0))["soft"]
    assert set(params["video"]) == {"stem_0", "stem_1", "out"}
    still = patches(3, 8)
    picture = embed_soft(params, config, COLOURED, batch_of(still), jnp.float32)
    unmoved = batch_of(np.concatenate([still, np.zeros_like(still)], -1))
    np.testing.assert_allclose(embed_soft(params, config, MOVING, unmoved, jnp.float32), picture, rtol=1e-4, atol=1e-4)
    moved = patches(3, 8, 1)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    change = np.stack([form_64(x.astype(np.float64))[..., 1:] for x in moved[0]])
    one, zero = dataclasses.replace(config, norm_eps=0.0), batch_of(moved[..., :3])
    places = PLACE * (p["image"]["row"][0] + p["image"]["column"][:3])
    without = np.asarray(embed_soft(params, one, COLOURED, zero, jnp.float32), np.float64)[0] - places
    added = convolved(p["video"], MOVING, change) @ p["video"]["out"]
    got = np.asarray(embed_soft(params, one, MOVING, batch_of(moved), jnp.float32))[0] - places
    # The norm hides the length of the sum, so compare directions: got ~ without * length + added, for some length > 0 of each patch.
    for g, w, a in zip(got, without, added, strict=True):
        lengths, *_ = np.linalg.lstsq(np.stack([g, -w], 1), a, rcond=None)
        np.testing.assert_allclose(np.stack([g, -w], 1) @ lengths, a, rtol=2e-2, atol=2e-2)
        assert (lengths > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"shares": "audio"}, "shares 'audio'"), ({"features": 9 * 9 * 6}, "same patch side"), ({"stem": ()}, "a stem if there is a change")],
)
def test_what_cannot_be_shared_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig("moving", 8, 6, (), 0, soft_inputs=(COLOURED, dataclasses.replace(MOVING, **change)))


def test_a_colour_grid_that_does_not_divide_the_patch_is_refused():
    with pytest.raises(ValueError, match="colour_grid of 3"):
        dataclasses.replace(COLOURED, colour_grid=3)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("hidden", [0, 7])
def test_soft_tokens_and_their_gradients_are_norm_linear_norm_of_torch(kind, hidden):
    F, D = 6, 4
    layer = LayerConfig(AttentionConfig(1, 1, 4), FeedForwardConfig(4))
    config = ModelConfig("test", 8, D, (layer,), 1, norm=kind)
    shapes = {"in_norm": F, "out_norm": D}
    w = {name: {part: rng.normal(size=n) for part in ("scale", "bias")[: 2 if kind == "layer" else 1]} for name, n in shapes.items()}
    w |= {"out": rng.normal(size=(hidden or F, D))} | ({"hidden": rng.normal(size=(F, hidden))} if hidden else {})
    x, g = rng.normal(size=(2, 3, F)), rng.normal(size=(2, 3, D))
    t = jax.tree.map(lambda a: torch.tensor(a, requires_grad=True), w)

    def norm(x, p):
        functions, size = torch.nn.functional, x.shape[-1:]
        return functions.layer_norm(x, size, **_named(p), eps=1e-6) if kind == "layer" else functions.rms_norm(x, size, p["scale"], 1e-6)

    y = norm(torch.tensor(x), t["in_norm"])
    y = torch.nn.functional.gelu(y @ t["hidden"], approximate="tanh") if hidden else y
    expected = norm(y @ t["out"], t["out_norm"])
    expected.backward(torch.tensor(g))
    batch = SoftBatch(jnp.float32(x), jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 3, 2), jnp.int32))
    soft = SoftInputConfig("image", F, hidden)
    out, pull = jax.vjp(lambda p: embed_soft({"image": p}, config, soft, batch, jnp.float32), jax.tree.map(jnp.float32, w))
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda got, tensor: np.testing.assert_allclose(got, tensor.grad, rtol=1e-3, atol=1e-3), pull(jnp.float32(g))[0], t)


def _named(norm_params):
    return {"weight": norm_params["scale"], "bias": norm_params["bias"]}


def test_the_stem_is_the_convolution_of_torch_inside_each_patch():
    soft = SoftInputConfig("image", 10 * 10 * 3, stem=((4, 2, 5), (3, 1, 7)), in_norm=False)
    assert soft.stem_sides() == (10, 4, 2)
    config = ModelConfig("stem", 8, 6, (), 0, soft_inputs=(soft,))
    params = init(config, jax.random.key(0))["soft"]["image"]
    features = rng.normal(size=(2, 3, 300))
    y = convolved(params, soft, features.reshape(6, 10, 10, 3)).reshape(2, 3, -1) @ np.asarray(params["out"], np.float64)
    expected = rms_norm_64(y, np.asarray(params["out_norm"]["scale"], np.float64), config.norm_eps)
    batch = SoftBatch(jnp.float32(features), np.zeros((2, 3), np.int32), np.zeros((2, 3, 2), np.int32))
    np.testing.assert_allclose(embed_soft({"image": params}, config, soft, batch, jnp.float32), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"features": 301}, "not a square patch"), ({"in_norm": True}, "in_norm"), ({"stem": ((11, 1, 4),)}, "does not fit")],
)
def test_a_stem_that_does_not_fit_its_patch_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SoftInputConfig("image", 300, stem=((4, 2, 5),), in_norm=False), **change)
