"""Images: any file that Pillow reads, a PIL image, an array or a page of a PDF to uint8 RGB, and an array to PNG."""

from __future__ import annotations

import io
import os

import numpy as np
import PIL.Image
import PIL.ImageOps

from pollux.media.pages import draw_page
from pollux.media.source import DEFAULT_LIMITS, Limits, MediaError, Page, check_pixels, naming, open_source

# Formats that run other programs or are drawings (EPS, PDF, WMF) are left out on purpose.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")


def decode_image(source: bytes | str | os.PathLike | np.ndarray | PIL.Image.Image | Page, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """An image as uint8 RGB [H, W, 3]: upright (EXIF), the first frame of an animation, transparency over white.

    Grey images of 16 bits are scaled to 8. Raises MediaError.
    """
    if isinstance(source, Page):
        return draw_page(source, limits)
    with naming("image", source) as name:
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
                raise MediaError(f"{name} must be uint8 [height, width, 3], not {source.dtype} {list(source.shape)}")
            check_pixels(name, source.shape[1], source.shape[0], limits)
            return source
        if isinstance(source, PIL.Image.Image):
            check_pixels(name, source.width, source.height, limits)
            return _rgb(source)
        with open_source(name, source, limits) as file:
            PIL.Image.init()
            try:
                image = PIL.Image.open(file, formats=[name for name in _FORMATS if name in PIL.Image.OPEN])
            except PIL.UnidentifiedImageError as error:
                raise MediaError(f"{name} is broken or not an image of a known format") from error
            with image:
                check_pixels(name, image.width, image.height, limits)
                return _rgb(image)


def encode_image(pixels: np.ndarray, mime_type: str = "image/png", quality: int = 75) -> bytes:
    """uint8 [H, W, 3] as a file: PNG, or JPEG of a quality of 0 to 100. Raises ValueError for another type."""
    formats = {"image/png": "PNG", "image/jpeg": "JPEG"}
    if mime_type not in formats:
        raise ValueError(f"a picture is written as {' or '.join(formats)}, not as {mime_type!r:.80}")
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, formats[mime_type], quality=quality)
    return file.getvalue()


def _rgb(image: PIL.Image.Image) -> np.ndarray:
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow holds 16-bit grey in "I;16", "I;16B" or "I"; 65535 / 255 = 257
        grey = np.clip(np.rint(np.asarray(image) / 257), 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", layer.size, "white"), layer)
    return np.array(image.convert("RGB"))
