"""Decoding real files, made here with Pillow, soundfile and PyAV, against what went into them; and refusing bad ones."""

import io
import struct
import warnings
import zlib
from fractions import Fraction
from pathlib import Path

import av
import fsspec
import numpy as np
import PIL.Image
import pytest
import soundfile

from pollux.content import Audio, Image, Video
from pollux.media import Limits, MediaError, VideoArray, media_kind

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (12, 20, 3), dtype=np.uint8)
TONE = 440.0  # Hz


def image_file(path: Path, image: PIL.Image.Image | np.ndarray, **options) -> Path:
    (image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)).save(path, **options)
    return path


def tone(seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * TONE * np.arange(round(seconds * rate)) / rate)


def amplitude(samples: np.ndarray, rate: int) -> tuple[float, float]:
    """Amplitude of the tone in the samples by least squares, and the root mean square of the rest, away from the ends."""
    samples = samples[len(samples) // 8 : -len(samples) // 8].astype(np.float64)
    phase = 2 * np.pi * TONE * np.arange(len(samples)) / rate
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    weights = np.linalg.lstsq(basis, samples, rcond=None)[0]
    return float(np.hypot(*weights)), float(np.sqrt(np.mean((samples - basis @ weights) ** 2)))


def audio_track(container, codec: str, samples: np.ndarray, rate: int, start: float = 0.0, layout: str = "mono"):
    stream = container.add_stream(codec, rate=rate, layout=layout)
    frame = av.AudioFrame.from_ndarray(samples.reshape(-1, samples.shape[-1]).astype(np.float32), format="fltp", layout=layout)
    frame.rate, frame.pts, frame.time_base = rate, round(start * rate), Fraction(1, rate)
    return lambda: [container.mux(stream.encode(block)) for block in (frame, None)]


def video_file(
    path: Path, times, frames, codec="libx264", pix_fmt="yuv444p", rotation=0, sound=None, start=0.0, b_frames=0, **options
) -> Path:
    """A clip with frames at the times (seconds), and sound at 16 kHz that starts at `start`."""
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream(codec, rate=25, width=frames.shape[2], height=frames.shape[1], pix_fmt=pix_fmt)
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.max_b_frames = b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        write_sound = None if sound is None else audio_track(container, "aac", sound, 16_000, start)
        for time, pixels in zip(times, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if write_sound:
            write_sound()
    return path


def grey_frames(number: int) -> np.ndarray:
    """Frame k is grey with the value 20 + 10 k, so that a decoded frame tells its number."""
    return np.broadcast_to((20 + 10 * np.arange(number, dtype=np.uint8))[:, None, None, None], (number, 32, 48, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    return [round((float(value) - 20) / 10) for value in frames.mean(axis=(1, 2, 3))]


def truncate(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


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
    alpha = RANDOM.integers(0, 256, (12, 20, 1), dtype=np.uint8)
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
    path = truncate(image_file(tmp_path / f"broken.{suffix}", RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)), share)
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


def test_formats_that_run_programs_or_open_other_files_are_refused(tmp_path):
    image_file(tmp_path / "a.png", PIXELS)
    picture = image_file(tmp_path / "a.eps", PIXELS)
    with pytest.raises(MediaError, match="a.eps"):
        Image(picture).pixels()
    clip = video_file(tmp_path / "real.mp4", [0.0], grey_frames(1))
    for text in (f"ffconcat version 1.0\nfile '{clip}'\n", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n"):
        listing = tmp_path / "list.mp4"
        listing.write_text(text)
        with pytest.raises(MediaError, match="list.mp4"):
            Video(listing).frames(1, 4)


@pytest.mark.parametrize("wrong", [PIXELS[0], PIXELS.astype(np.float32), PIXELS[:, :, :2], 3, None])
def test_an_image_refuses_sources_of_another_shape_or_kind(wrong):
    with pytest.raises(MediaError):
        Image(wrong).pixels()


LOSSLESS = [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("wav", "PCM_U8"), ("flac", "PCM_24"), ("aiff", "PCM_16")]


@pytest.mark.parametrize("suffix, subtype", LOSSLESS + [("ogg", "VORBIS"), ("ogg", "OPUS"), ("mp3", "MPEG_LAYER_III")])
@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_every_sound_file_becomes_mono_at_the_asked_rate(tmp_path, suffix, subtype, rate):
    left = tone(1.0, rate)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([left, np.zeros_like(left)], axis=1), rate, subtype=subtype)
    samples = Audio(path).samples(16_000)
    assert samples.dtype == np.float32 and samples.ndim == 1 and abs(len(samples) - 16_000) <= (1200 if suffix == "mp3" else 1)
    loudness, rest = amplitude(samples, 16_000)
    assert abs(loudness - 0.25) < 0.01 and rest < 0.01  # the mean of 0.5 and 0
    np.testing.assert_array_equal(Audio(path.read_bytes()).samples(16_000), samples)


@pytest.mark.parametrize("suffix", ["m4a", "aac", "webm"])
def test_sound_that_libsndfile_cannot_read_goes_through_ffmpeg(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    left = tone(1.0, 48_000)
    with av.open(path, "w", format={"m4a": "ipod", "aac": "adts", "webm": "webm"}[suffix]) as container:
        codec = "libopus" if suffix == "webm" else "aac"
        audio_track(container, codec, np.stack([left, np.zeros_like(left)]), 48_000, layout="stereo")()
    samples = Audio(path).samples(16_000)
    assert abs(len(samples) - 16_000) < 1000 and samples.dtype == np.float32
    loudness, rest = amplitude(samples, 16_000)
    assert abs(loudness - 0.25) < 0.01 and rest < 0.01


def test_lossless_sound_at_its_own_rate_keeps_every_sample(tmp_path):
    samples = RANDOM.integers(-(2**23), 2**23, 1000) / 2**23
    soundfile.write(tmp_path / "a.flac", samples, 22_050, subtype="PCM_24")
    np.testing.assert_array_equal(Audio(tmp_path / "a.flac").samples(22_050), samples.astype(np.float32))


def test_arrays_are_resampled_averaged_and_kept_within_one():
    stereo = np.stack([tone(1.0, 44_100), np.zeros(44_100)], axis=1)
    loudness, rest = amplitude(Audio(stereo, 44_100).samples(16_000), 16_000)
    assert abs(loudness - 0.25) < 1e-3 and rest < 1e-3
    square = np.sign(np.sin(np.arange(44_100) / 20)).astype(np.float32) * 1.5
    assert np.abs(Audio(square, 44_100).samples(16_000)).max() == 1.0
    for wrong, rate in ((stereo, None), (np.array([np.nan, 0.0]), 8_000), (np.zeros(4, np.int16), 8_000), (np.zeros((2, 2, 2)), 8_000)):
        with pytest.raises(MediaError):
            Audio(wrong, rate).samples(16_000)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff", "m4a"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.8])
def test_a_truncated_sound_is_one_error_that_names_it(tmp_path, suffix, share):
    path = tmp_path / f"broken.{suffix}"
    if suffix == "m4a":
        with av.open(path, "w", format="ipod", options={"movflags": "faststart"}) as container:
            audio_track(container, "aac", RANDOM.uniform(-0.5, 0.5, 48_000), 48_000)()
    else:
        soundfile.write(
            path, tone(2.0, 48_000), 48_000, format="ogg" if suffix == "opus" else None, subtype="OPUS" if suffix == "opus" else None
        )
    assert len(Audio(path).samples(8_000)) > 7_000
    with pytest.raises(MediaError, match=f"broken.{suffix}"):
        Audio(truncate(path, share)).samples(16_000)


def test_a_recording_whose_header_never_learned_its_length_is_read_whole(tmp_path):
    path = tmp_path / "stream.wav"
    soundfile.write(path, tone(0.5, 16_000), 16_000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    assert bytes(data[36:40]) == b"data" and len(Audio(bytes(data)).samples(16_000)) == 8_000


def test_limits_of_a_sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(2.0, 16_000), 16_000)
    soundfile.write(tmp_path / "a.mp3", tone(2.0, 16_000), 16_000)
    assert len(Audio(tmp_path / "a.wav").samples(16_000, Limits(max_seconds=2.0))) == 32_000
    for source, rate in ((tmp_path / "a.wav", None), (tmp_path / "a.mp3", None), (tone(2.0, 16_000), 16_000)):
        with pytest.raises(MediaError, match="limit of 1.9 seconds"):
            Audio(source, rate).samples(16_000, Limits(max_seconds=1.9))
    with pytest.raises(MediaError, match="limit of 100 bytes"):
        Audio(tmp_path / "a.wav").samples(16_000, Limits(max_bytes=100))


def latest_frames(times, fps: float) -> list[int]:
    """By the definition: for k = 0, 1, ... the last frame whose time from the first is at most k / fps."""
    offsets = [round((time - times[0]) * 1000) for time in times]
    picked, k = [], 0
    while k * 1000 <= offsets[-1] * fps:
        picked.append(max(index for index, offset in enumerate(offsets) if offset * fps <= k * 1000))
        k += 1
    return picked


VARIABLE = [0.0, 0.04, 0.08, 0.5, 0.52, 1.0, 1.7, 1.74, 1.75, 2.5, 2.501, 3.0]


@pytest.mark.parametrize("fps", [1, 2, 10, 25])
@pytest.mark.parametrize("suffix, codec", [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9"), ("array", None)])
def test_frames_are_picked_by_their_times(tmp_path, suffix, codec, fps):
    source = VideoArray(grey_frames(12), np.array(VARIABLE) + 5.0)
    if suffix != "array":
        source = video_file(tmp_path / f"a.{suffix}", VARIABLE, source.frames, codec, "yuv420p", b_frames=2 if codec == "libx264" else 0)
    frames, times = Video(source).frames(fps, 100)
    assert numbers(frames) == latest_frames(VARIABLE, fps) and frames.dtype == np.uint8 and frames.shape[1:] == (32, 48, 3)
    np.testing.assert_allclose(times, np.arange(len(frames)) / fps)
    assert times.dtype == np.float64


def test_a_long_clip_is_spread_over_at_most_max_frames(tmp_path):
    path = video_file(tmp_path / "a.mp4", np.arange(21) / 10, grey_frames(21))
    frames, times = Video(path).frames(10, 5)
    assert numbers(frames) == [0, 5, 10, 15, 20]
    np.testing.assert_allclose(times, [0, 0.5, 1, 1.5, 2])
    assert len(Video(path).frames(10, 21)[0]) == 21 and len(Video(path).frames(10, 1)[0]) == 1


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_a_rotation_flag_turns_the_frames_as_its_matrix_says(tmp_path, rotation):
    marked = np.full((1, 32, 48, 3), 128, np.uint8)
    marked[:, :16, :16] = 255  # the corner of the first row and column
    path = video_file(tmp_path / "a.mp4", [0.0], marked, rotation=rotation)
    data = path.read_bytes()
    header = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2: the matrix of a version-0 track header
    a, b, _, c, d = (value / 65536 for value in struct.unpack(">5i", data[header : header + 20]))
    right, down = a * -1 + c * -1, b * -1 + d * -1  # where the corner (-1, -1) from the centre goes: x' = ax + cy, y' = bx + dy
    frame = Video(path).frames(1, 1)[0][0].astype(int).mean(axis=2)
    assert frame.shape == ((48, 32) if rotation in (90, -90) else (32, 48))
    corner = frame[-8:] if down > 0 else frame[:8]
    corner = corner[:, -8:] if right > 0 else corner[:, :8]
    assert corner.mean() > 240 and frame.mean() < 180


def test_sound_of_a_clip_begins_with_its_first_frame(tmp_path):
    late = video_file(tmp_path / "late.mkv", np.arange(10) / 5, grey_frames(10), sound=tone(1.0, 16_000), start=0.5)
    samples = Video(late).samples(16_000)
    assert np.abs(samples[:7_000]).max() < 0.01 and abs(np.flatnonzero(np.abs(samples) > 0.1)[0] - 8_000) < 1100
    early = video_file(tmp_path / "early.mkv", 0.5 + np.arange(10) / 5, grey_frames(10), sound=tone(2.0, 16_000))
    assert abs(len(Video(early).samples(16_000)) - 24_000) < 2100 and abs(len(Audio(early).samples(16_000)) - 32_000) < 2100
    loudness, rest = amplitude(Video(early).samples(8_000), 8_000)
    assert abs(loudness - 0.5) < 0.01 and rest < 0.02


def test_a_clip_without_sound_has_no_samples(tmp_path):
    path = video_file(tmp_path / "a.mp4", [0.0, 0.5], grey_frames(2))
    for source in (path, VideoArray(grey_frames(2), np.array([0.0, 0.5]))):
        samples = Video(source).samples(16_000)
        assert samples.shape == (0,) and samples.dtype == np.float32
    with pytest.raises(MediaError, match="audio"):
        Audio(path).samples(16_000)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.7])
def test_a_truncated_clip_is_one_error_that_names_it(tmp_path, suffix, share):
    noise = RANDOM.integers(0, 256, (10, 32, 48, 3), dtype=np.uint8)
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    path = video_file(tmp_path / f"broken.{suffix}", np.arange(10) / 10, noise, sound=tone(1.0, 16_000), **options)
    assert len(Video(path).frames(10, 20)[0]) == 10
    truncate(path, share)
    with pytest.raises(MediaError, match=f"broken.{suffix}"):
        Video(path).frames(10, 20)
    with pytest.raises(MediaError, match=f"broken.{suffix}"):
        Video(path).samples(16_000)


def test_limits_of_a_clip(tmp_path):
    path = video_file(tmp_path / "a.mp4", np.arange(10) / 5, grey_frames(10))
    exact = Limits(max_pixels=32 * 48, max_seconds=1.8, max_frames=10, max_bytes=max(10 * 32 * 48 * 3, path.stat().st_size))
    assert len(Video(path).frames(5, 100, exact)[0]) == 10
    for limits in (Limits(max_pixels=32 * 48 - 1), Limits(max_seconds=1.7), Limits(max_frames=9), Limits(max_bytes=32 * 48 * 3 * 9)):
        for source in (path, VideoArray(grey_frames(10), np.arange(10) / 5)):
            with pytest.raises(MediaError, match="limit"):
                Video(source).frames(5, 100, limits)


def test_noise_is_no_medium():
    noise = RANDOM.bytes(5000)
    for decode in (lambda: Image(noise).pixels(), lambda: Audio(noise).samples(16_000), lambda: Video(noise).frames(1, 4)):
        with pytest.raises(MediaError, match="5000 bytes"):
            decode()


def test_media_kind_goes_by_extension():
    assert [media_kind(name) for name in ("a.PNG", Path("x/b.mp3"), "https://h/c.mp4?x=1.png", "d.txt", "png")] == [
        "image",
        "audio",
        "video",
        None,
        None,
    ]


def test_a_pillow_image_from_a_file_keeps_its_rotation(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(file, "PNG", exif=exif)
    assert Image(PIL.Image.open(file)).pixels().shape == (20, 12, 3)
