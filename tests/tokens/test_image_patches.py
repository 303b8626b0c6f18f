"""Patches against a loop over pixels; the resize rule as properties over many sizes."""

import numpy as np
import pytest

from pollux.tokens.config import ImageTokens
from pollux.tokens.image import grid, patches


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("patch", "stride"), [(4, 4), (8, 4), (7, 4), (16, 8)])
def test_patches_are_the_pixels_of_each_window_with_replicated_borders(patch, stride):
    pixels = noise(3 * stride, 2 * stride)
    features, coord = patches(pixels, ImageTokens(patch=patch, stride=stride))
    before, after = (patch - stride) // 2, patch - stride - (patch - stride) // 2
    padded = np.pad(pixels.astype(np.float64), ((before, after), (before, after), (0, 0)), mode="edge")
    assert coord.tolist() == [[r, c] for r in range(3) for c in range(2)]
    assert features.dtype == np.float32
    for feature, (r, c) in zip(features, coord, strict=True):
        window = padded[r * stride : r * stride + patch, c * stride : c * stride + patch]
        np.testing.assert_allclose(feature, window.reshape(-1) / 127.5 - 1, atol=1e-6)


def test_features_span_minus_one_to_one():
    black, _ = patches(np.zeros((16, 16, 3), np.uint8), ImageTokens())
    white, _ = patches(np.full((16, 16, 3), 255, np.uint8), ImageTokens())
    assert (black == -1).all() and (white == 1).all()


def test_the_budget_is_kept_and_nearly_used_and_the_aspect_ratio_stays():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        height, width = np.exp(rng.uniform(0, 9, 2)).astype(int)
        config = ImageTokens(stride=int(rng.choice([8, 14, 16])), max_tokens=int(rng.integers(1, 1000)))
        rows, columns = grid(height, width, config)
        assert rows >= 1 and columns >= 1 and rows * columns <= config.max_tokens
        fits = max(1, round(height / config.stride)) * max(1, round(width / config.stride)) <= config.max_tokens
        if fits:  # each side at its nearest multiple, so at most one stride is added
            assert abs(rows * config.stride - height) <= max(config.stride / 2, config.stride - height)
            assert abs(columns * config.stride - width) <= max(config.stride / 2, config.stride - width)
        elif min(rows, columns) > 1:  # one patch more on both sides would break the budget, and the ratio is right within a patch
            assert (rows + 1) * (columns + 1) > config.max_tokens
            assert rows / (columns + 1) < height / width < (rows + 1) / columns


def test_an_image_on_the_grid_is_not_resampled():
    pixels = noise(48, 32)
    features, _ = patches(pixels, ImageTokens(patch=16, stride=16))
    assert features.shape == (6, 768)
    np.testing.assert_array_equal(np.rint((features[0] + 1) * 127.5).astype(np.uint8), pixels[:16, :16].reshape(-1))


def test_a_large_image_is_shrunk_with_antialiasing():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[::2] = 255  # finer than the new pixels: their mean is grey
    features, _ = patches(stripes, ImageTokens(patch=16, stride=16, max_tokens=16))
    assert features.shape == (16, 768)
    assert abs(features).max() < 0.1


def test_patches_narrower_than_the_stride_are_refused():
    with pytest.raises(ValueError, match="patch 8 .* stride 16"):
        ImageTokens(patch=8, stride=16)


def test_standardised_patches_have_no_mean_colour_and_one_deviation_over_the_image():
    pixels = np.random.default_rng(3).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    got, _ = patches(pixels, ImageTokens(patch=16, stride=16, standardise=True))
    plain = (pixels.astype(np.float64) / 127.5 - 1).reshape(2, 16, 3, 16, 3).swapaxes(1, 2).reshape(6, -1, 3)
    centred = plain - plain.mean((0, 1))
    np.testing.assert_allclose(got.reshape(6, -1, 3), centred / np.sqrt(np.mean(centred**2)), atol=1e-4)


def test_an_even_picture_stays_even_when_standardised():
    pixels = np.full((16, 16, 3), 90, np.uint8)
    pixels[3, 4] = 91
    got, _ = patches(pixels, ImageTokens(standardise=True))
    assert 0.1 < np.abs(got).max() < 0.2
