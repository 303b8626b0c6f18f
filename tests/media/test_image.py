"""Decoding real image files against what went into them; and refusing bad ones."""

import functools
import http.server
import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import fsspec
import numpy as np
import PIL.Image
import pytest
from media_files import image_file, noise, truncate

from pollux.content import Audio, Image, Video
from pollux.media import Limits, MediaError, media_kind

PIXELS = noise(12, 20, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_upright(tmp_path, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = image_file(tmp_path / "a.png", PIXELS, exif=exif)
    # EXIF 2.32, tag 274: which sides of the picture the 0th row and the 0th column of the file are
    upright = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: PIXELS.transpose(1, 0, 2)[:, ::-1],
        7: PIXELS.transpose(1, 0, 2)[::-1, ::-1],
        8: PIXELS.transpose(1, 0, 2)[::-1],
    }[orientation]
    np.testing.assert_array_equal(Image(path).pixels(), upright)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_is_scaled_not_cut(tmp_path, suffix):
    grey = np.linspace(0, 65535, 240).reshape(12, 20).astype(np.uint16)
    pixels = Image(image_file(tmp_path / f"a.{suffix}", grey)).pixels()
    np.testing.assert_array_equal(pixels, np.repeat(np.round(grey / 65535.0 * 255)[:, :, None], 3, axis=2))


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = PIL.Image.fromarray(np.concatenate([255 - PIXELS, np.zeros((12, 20, 1), np.uint8)], axis=2), "CMYK")
    np.testing.assert_array_equal(Image(image_file(tmp_path / "a.tif", cmyk)).pixels(), PIXELS)
    flat = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(Image(image_file(tmp_path / "a.jpg", flat)).pixels() - np.array([255.0, 0, 0])).max() < 6


def test_transparency_is_laid_over_white(tmp_path):
    alpha = noise(12, 20, 4)[:, :, 3:]
    expected = (PIXELS * (alpha / 255) + 255 * (1 - alpha / 255)).round()
    rgba = image_file(tmp_path / "a.png", np.concatenate([PIXELS, alpha], axis=2))
    assert np.abs(Image(rgba).pixels() - expected).max() <= 1
    palette = PIL.Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    path = image_file(tmp_path / "p.png", palette, transparency=0)
    np.testing.assert_array_equal(Image(path).pixels(), [[[255, 255, 255], [200, 100, 50]]])


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = image_file(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(Image(path).pixels(), np.full((8, 8, 3), (255, 0, 0)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_mode_and_source_gives_the_same_rgb(tmp_path, mode):
    grey = PIL.Image.fromarray(((PIXELS[:, :, 0] > 127) * 255).astype(np.uint8))
    image = grey.convert(mode)
    path = image_file(tmp_path / "a.png", image)
    with fsspec.open("memory://pollux/a.png", "wb") as file:
        file.write(path.read_bytes())
    for source in (path, str(path), path.read_bytes(), image, "memory://pollux/a.png"):
        np.testing.assert_array_equal(Image(source).pixels(), np.repeat(np.asarray(grey)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_image_is_one_error_that_names_it(tmp_path, suffix, share):
    path = truncate(image_file(tmp_path / f"broken.{suffix}", noise(64, 64, 3)), share)
    with pytest.raises(MediaError, match=f"broken.{suffix}"):
        Image(path).pixels()


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (9_000, 11_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        path = tmp_path / "bomb.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""))
        with warnings.catch_warnings(), pytest.raises(MediaError, match="bomb.png.*pixels"):
            warnings.simplefilter("error")
            Image(path).pixels()


def test_limits_of_an_image_are_exact(tmp_path):
    path = image_file(tmp_path / "a.png", PIXELS)
    assert Image(path).pixels(Limits(max_pixels=240, max_bytes=path.stat().st_size)).shape == PIXELS.shape
    for limits in (Limits(max_pixels=239), Limits(max_bytes=path.stat().st_size - 1)):
        for source in (path, path.read_bytes()):
            with pytest.raises(MediaError, match="limit"):
                Image(source).pixels(limits)
    with pytest.raises(MediaError, match="limit"):
        Image(PIXELS).pixels(Limits(max_pixels=239))
    with pytest.raises(MediaError, match="limit"):
        Image(PIL.Image.fromarray(PIXELS)).pixels(Limits(max_pixels=239))


def test_a_drawing_that_would_run_another_program_is_refused(tmp_path):
    with pytest.raises(MediaError, match="a.eps is broken or not an image of a known format"):
        Image(image_file(tmp_path / "a.eps", PIXELS)).pixels()


@pytest.mark.parametrize("wrong", [PIXELS[0], PIXELS.astype(np.float32), PIXELS[:, :, :2], 3, None])
def test_an_image_refuses_sources_of_another_shape_or_kind(wrong):
    with pytest.raises(MediaError):
        Image(wrong).pixels()


def test_a_pillow_image_from_a_file_keeps_its_rotation(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(file, "PNG", exif=exif)
    assert Image(PIL.Image.open(file)).pixels().shape == (20, 12, 3)


@pytest.fixture
def server(tmp_path):
    """(address, folder) of a web server on this machine."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}", tmp_path
        serving.shutdown()


def test_a_picture_is_read_from_the_web_within_the_limits(server):
    address, folder = server
    PIL.Image.fromarray(PIXELS).save(folder / "cat.png")
    np.testing.assert_array_equal(Image(f"{address}/cat.png").pixels(), PIXELS)
    with pytest.raises(MediaError, match="cat.png is larger than the limit of 10 bytes"):
        Image(f"{address}/cat.png").pixels(Limits(max_bytes=10))
    with pytest.raises(MediaError, match="dog.png does not exist"):
        Image(f"{address}/dog.png").pixels()


def test_noise_is_no_medium():
    data = noise(5000).tobytes()
    for decode in (lambda: Image(data).pixels(), lambda: Audio(data).samples(16_000), lambda: Video(data).frames(1, 4)):
        with pytest.raises(MediaError, match="5000 bytes"):
            decode()


def test_a_ts_file_is_a_video_only_if_it_begins_with_packets_of_one(tmp_path):
    for name, content, kind in (
        ("code.ts", b"let x = 1\n" * 100, None),
        ("short.ts", b"Greeter()\n", None),
        ("clip.ts", (b"G" + b"\xff" * 187) * 3, "video"),
    ):
        (tmp_path / name).write_bytes(content)
        assert media_kind(tmp_path / name) == kind
    assert media_kind("https://h/clip.ts") == "video"


def test_media_kind_goes_by_extension():
    assert [media_kind(name) for name in ("a.PNG", Path("x/b.mp3"), "https://h/c.mp4?x=1.png", "d.txt", "png")] == [
        "image",
        "audio",
        "video",
        None,
        None,
    ]
