"""Claims about the image codec: quantisation against its formula in float64, packing, stability, learning, errors."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pollux.tokens.codec import Codec, CodecConfig, CodecTraining, fsq, model, train

LEVELS = (8, 6, 4, 2)
SMALL = CodecConfig(size=(16, 24), patch=8, window=12, form_levels=(4, 4, 2), colour_levels=(6, 4), hidden=32, layers=2)


def pictures(seed: int, count: int, size: tuple[int, int] = (16, 24)) -> np.ndarray:
    """One bright disc on dark ground each: uint8 [count, H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    centre = rng.uniform(4, 12, (count, 2, 1, 1))
    inside = (np.hypot(y - centre[:, 0], x - centre[:, 1]) < rng.uniform(3, 6, (count, 1, 1)))[..., None]
    ground, disc = rng.uniform(0, 80, (count, 1, 1, 3)), rng.uniform(120, 255, (count, 1, 1, 3))
    return np.where(inside, disc, ground).astype(np.uint8)


@pytest.fixture(scope="module")
def trained() -> Codec:
    batches = pictures(0, 640).reshape(40, 16, 16, 24, 3)
    return train(itertools.cycle(batches), SMALL, CodecTraining(steps=500, learning_rate=4e-3))


def reference_bound(x: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """Mentzer et al. 2023 (f of the appendix with the authors' later 1 + eps), even levels, in float64."""
    half = (np.asarray(levels, np.float64) - 1) * (1 + 1e-3) / 2
    return half * np.tanh(x + np.arctanh(0.5 / half)) - 0.5


def test_quantisation_is_the_published_formula():
    x = np.random.default_rng(0).normal(0, 2, (500, len(LEVELS)))
    expected = reference_bound(x, LEVELS)
    np.testing.assert_allclose(fsq.bound(x.astype(np.float32), LEVELS), expected, atol=1e-5)
    clear = np.abs(np.abs(expected % 1) - 0.5) > 1e-4  # away from the rounding border
    np.testing.assert_array_equal(fsq.quantise(x.astype(np.float32), LEVELS)[clear], np.round(expected)[clear])


def test_every_level_is_reached_and_none_beyond():
    x = np.linspace(-20, 20, 20_001, dtype=np.float32)[:, None].repeat(len(LEVELS), 1)
    quantised = fsq.quantise(x, LEVELS)
    for i, level in enumerate(LEVELS):
        np.testing.assert_array_equal(np.unique(quantised[:, i]), np.arange(-level // 2, level // 2))
        unit = np.unique(fsq.to_unit(quantised, LEVELS)[:, i])
        np.testing.assert_allclose(unit, -1 + (2 * np.arange(level) + 1) / level, atol=1e-6)


def test_straight_through_rounds_forward_and_has_the_gradient_of_the_bound():
    x = np.random.default_rng(1).normal(0, 1, (50, len(LEVELS)))
    values = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(fsq.quantise_straight_through(values, LEVELS), fsq.quantise(values, LEVELS), atol=1e-6)
    half = (np.asarray(LEVELS) - 1) * (1 + 1e-3) / 2
    expected = half * (1 - ((reference_bound(x, LEVELS) + 0.5) / half) ** 2)  # d tanh = 1 - tanh^2
    gradient = jax.jit(jax.grad(lambda v: fsq.quantise_straight_through(v, LEVELS).sum()))(values)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


def test_digits_are_a_bijection_over_all_codes():
    everything = np.arange(np.prod(LEVELS))
    vectors = fsq.from_digit(everything, LEVELS)
    assert len(np.unique(vectors, axis=0)) == len(everything)
    np.testing.assert_array_equal(fsq.to_digit(vectors, LEVELS), everything)
    assert (vectors >= -np.array(LEVELS) // 2).all() and (vectors < np.array(LEVELS) // 2).all()


def test_form_does_not_depend_on_which_two_colours_a_picture_has():
    rng = np.random.default_rng(3)
    share = (rng.random((1, 16, 24, 1)) < 0.25).astype(np.float32)
    config = CodecConfig(size=(16, 24), form_levels=(4, 4), hidden=16)
    params = model.init(config, 0)

    def form(ground, thing):
        return model.latents(params, (np.array(ground) + share * (np.array(thing) - ground)).astype(np.float32), config)[0]

    expected = form((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    for ground, thing in (((0.1, 0.2, 0.3), (0.9, 0.1, 0.2)), ((0.8, 0.8, 0.1), (0.0, 0.3, 0.9))):
        np.testing.assert_allclose(form(ground, thing), expected, atol=0.1)
    assert np.ptp(expected) > 1  # it does depend on the pattern


def test_principal_variation_is_the_first_principal_component():
    window = np.random.default_rng(4).normal(0.5, 0.1, (1, 5, 3, 64)) * np.array([3.0, 1.0, 0.5])[:, None]
    ours = model.principal_variation(window, np.zeros((1, 3)))
    for i in range(5):
        deviation = window[0, i] - window[0, i].mean(-1, keepdims=True)
        component = np.linalg.svd(deviation)[0][:, 0] @ deviation
        assert abs(np.corrcoef(ours[0, i], component)[0, 1]) > 0.9999


def test_numpy_and_jax_give_the_same_latents_and_pixels(trained):
    images = pictures(5, 3).astype(np.float32) / 255
    latents = model.latents(trained.params, images, SMALL)
    with_jax = jax.jit(model.latents, static_argnums=2)(trained.params, images, SMALL)
    for ours, theirs in zip(latents, with_jax, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    form, colour = (np.tanh(z) for z in latents)
    painted = jax.jit(model.paint, static_argnums=3)(trained.params, form, colour, SMALL)
    np.testing.assert_allclose(model.paint(trained.params, form, colour, SMALL), painted, atol=1e-4)


def test_codes_fit_the_levels_and_one_image_encodes_as_in_a_batch(trained):
    images = pictures(6, 9)
    codes = trained.encode(images)
    assert codes.shape == (9, 6, 2) and codes.dtype == np.int32
    assert trained.levels == (32, 24) and (codes >= 0).all() and (codes < trained.levels).all()
    np.testing.assert_array_equal(np.concatenate([trained.encode(images[i : i + 1]) for i in range(9)]), codes)


def test_training_lowers_the_error_on_new_pictures(trained):
    images = pictures(7, 64)
    untrained = Codec(SMALL, model.init(SMALL, 0))
    mean = images.mean((0, 1, 2))
    constant = 10 * np.log10(255**2 / np.mean((images - mean) ** 2))
    assert trained.quality(images).psnr > max(untrained.quality(images).psnr, constant) + 2


def test_quality_matches_its_definition(trained):
    images = pictures(8, 20)
    codes = trained.encode(images)
    quality = trained.quality(images)
    error = np.mean((trained.decode(codes).astype(float) - images) ** 2)
    assert quality.psnr == pytest.approx(20 * np.log10(255) - 10 * np.log10(error))
    for digit, perplexity in enumerate(quality.perplexity):
        share = np.bincount(codes[..., digit].ravel()) / codes[..., digit].size
        assert perplexity == pytest.approx(np.prod(np.where(share > 0, share, 1) ** -share))


def test_coding_again_what_was_decoded_changes_little(trained):
    once = trained.decode(trained.encode(pictures(9, 40)))
    twice = trained.decode(trained.encode(once))
    assert np.abs(once.astype(int) - twice).mean() < 0.5 * np.abs(once.astype(int) - pictures(9, 40)).mean()


def test_training_is_a_function_of_steps_and_seed():
    def run(seed):
        return train(itertools.repeat(pictures(0, 16)), SMALL, CodecTraining(steps=3, seed=seed)).params["blend"]["0"]["weight"]

    np.testing.assert_array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))


def test_progress_reports_every_step_in_order():
    seen = []
    train(itertools.repeat(pictures(0, 16)), SMALL, CodecTraining(steps=4), seen.append)
    assert [p.step for p in seen] == [1, 2, 3, 4]
    assert all(np.isfinite([p.loss, p.psnr]).all() for p in seen)


def test_save_and_load_is_the_identity(trained, tmp_path):
    trained.save(tmp_path / "codec")
    loaded = Codec.load(tmp_path / "codec")
    images = pictures(10, 5)
    assert loaded.config == trained.config and loaded.size == (16, 24)
    np.testing.assert_array_equal(loaded.encode(images), trained.encode(images))
    np.testing.assert_array_equal(loaded.decode(trained.encode(images)), trained.decode(trained.encode(images)))


def test_mistakes_are_named(trained, tmp_path):
    with pytest.raises(ValueError, match=r"\[B, 16, 24, 3\], got uint8 \[2, 24, 24, 3\]"):
        trained.encode(np.zeros((2, 24, 24, 3), np.uint8))
    with pytest.raises(ValueError, match="got float32"):
        trained.encode(np.zeros((2, 16, 24, 3), np.float32))
    with pytest.raises(ValueError, match=r"\[B, 6, 2\], got \[1, 5, 2\]"):
        trained.decode(np.zeros((1, 5, 2), np.int32))
    with pytest.raises(ValueError, match="below"):
        trained.decode(np.full((1, 6, 2), 24, np.int32))
    with pytest.raises(ValueError, match="codec.json is missing"):
        Codec.load(tmp_path)
    with pytest.raises(ValueError, match=r"got uint8 \[4, 8, 8, 3\]"):
        train(itertools.repeat(np.zeros((4, 8, 8, 3), np.uint8)), SMALL, CodecTraining(steps=1))
    with pytest.raises(ValueError, match="ended after 1 of 5 steps"):
        train(iter([pictures(0, 16)]), SMALL, CodecTraining(steps=5))
    with pytest.raises(ValueError, match="multiple of patch 8"):
        CodecConfig(size=(50, 48))
    with pytest.raises(ValueError, match="even numbers"):
        CodecConfig(form_levels=(5, 4))


def test_weights_that_do_not_fit_the_config_are_refused(trained, tmp_path):
    trained.save(tmp_path)
    config = json.loads((tmp_path / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps(config | {"hidden": 33}))
    with pytest.raises(ValueError, match="form_encoder.0.weight must have shape"):
        Codec.load(tmp_path)
    (tmp_path / "codec.json").write_text(json.dumps(config | {"colors": 3}))
    with pytest.raises(ValueError, match="no field colors"):
        Codec.load(tmp_path)
