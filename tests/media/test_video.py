"""Decoding real clips, whose grey frames tell their numbers, against their times; and refusing bad ones."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from media_files import amplitude, grey_frames, noise, numbers, tone, truncate, video_file

from pollux.content import Audio, Video
from pollux.media import Limits, MediaError, VideoArray, encode_video


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
        source = video_file(
            tmp_path / f"a.{suffix}", np.array(VARIABLE) + 0.5, source.frames, codec, "yuv420p", b_frames=2 if codec == "libx264" else 0
        )
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


@pytest.mark.parametrize(("most", "expected"), [(5, [0, 2, 4, 7, 9]), (12, list(range(12))), (40, list(range(12)))])
def test_frames_can_be_spread_evenly_by_their_number(tmp_path, most, expected):
    path = video_file(tmp_path / "a.mkv", VARIABLE, grey_frames(12), b_frames=2)
    for source in (path, VideoArray(grey_frames(12), np.array(VARIABLE) + 5.0)):
        frames, times = Video(source).frames(0, most)
        assert numbers(frames) == expected
        np.testing.assert_allclose(times, np.array(VARIABLE)[expected] - VARIABLE[0], atol=1e-3)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_section_of_a_clip_is_read_as_if_it_were_the_whole(tmp_path, in_memory):
    frames, times = grey_frames(20), np.arange(20) / 10
    source = VideoArray(frames, times, tone(2.0, 16000), 16000) if in_memory else video_file(tmp_path / "a.mkv", times, frames)
    found, at = Video(source, 0.55, 1.2).frames(10, 100)
    assert numbers(found) == [5, 6, 7, 8, 9, 10] and at[0] == 0 and at[-1] == pytest.approx(0.5)
    assert numbers(Video(source, 0.5, 1.5, fps=2).frames(10, 100)[0]) == [5, 10]
    assert numbers(Video(source, 1.0).frames(0, 2)[0]) == [10, 15]
    if in_memory:
        np.testing.assert_array_equal(Video(source, 0.5, 1.5).samples(16000), Video(source).samples(16000)[8000:24000])
    with pytest.raises(MediaError, match="ends after 1.9 seconds, before the section from 3 seconds begins"):
        Video(source, 3.0).frames(1, 10)


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


def test_a_gap_in_the_sound_of_a_clip_is_silence_of_its_length(tmp_path):
    path = tmp_path / "gap.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for start in (0, 24_000):
            frame = av.AudioFrame.from_ndarray(np.full((1, 8_000), 16_384, np.int16), format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = 16_000, start, Fraction(1, 16_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    expected = np.concatenate([np.full(8_000, 0.5), np.zeros(16_000), np.full(8_000, 0.5)])
    np.testing.assert_array_equal(Audio(path).samples(16_000), expected)
    with pytest.raises(MediaError, match="limit of 1 seconds"):
        Audio(path).samples(16_000, Limits(max_seconds=1.0))


@pytest.mark.parametrize(
    "frames, times, audio, rate",
    [
        (grey_frames(2)[:, :, :, 0], [0.0, 1.0], None, None),
        (grey_frames(2)[:0], [], None, None),
        (grey_frames(2), [0.0], None, None),
        (grey_frames(2), [1.0, 1.0], None, None),
        (grey_frames(2), [0.0, 1.0], np.zeros(8, np.float32), None),
    ],
)
def test_arrays_that_are_no_clip_are_refused(frames, times, audio, rate):
    clip = VideoArray(frames, np.array(times), audio, rate)
    for use in (lambda: Video(clip).samples(8_000), lambda: encode_video(clip)):
        with pytest.raises(MediaError, match="video given as VideoArray"):
            use()


@pytest.mark.parametrize("size", [(32, 48), (31, 47)])
def test_a_clip_written_as_mp4_has_its_frames_times_and_sound(size):
    times, sound = np.array([0.0, 0.25, 1.0, 1.5]), tone(2.0, 16_000)
    data = encode_video(VideoArray(grey_frames(4)[:, : size[0], : size[1]], times + 3, sound, 16_000), "video/mp4")
    with av.open(io.BytesIO(data)) as container:
        assert "mp4" in container.format.name and container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == ("yuv420p" if size == (32, 48) else "yuv444p")
    frames, found = Video(data).frames(0, 100)
    assert numbers(frames) == [0, 1, 2, 3] and frames.shape[1:3] == size
    np.testing.assert_allclose(found, times, atol=1e-3)
    loudness, rest = amplitude(Video(data).samples(16_000)[2_000:-2_000], 16_000)
    assert abs(loudness - 0.5) < 0.02 and rest < 0.05
    with pytest.raises(ValueError, match="written as video/x-matroska or video/mp4, not as 'video/avi'"):
        encode_video(VideoArray(grey_frames(1), times[:1]), "video/avi")


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
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    path = video_file(tmp_path / f"broken.{suffix}", np.arange(10) / 10, noise(10, 32, 48, 3), sound=tone(1.0, 16_000), **options)
    assert len(Video(path).frames(10, 20)[0]) == 10
    truncate(path, share)
    with pytest.raises(MediaError, match=f"broken.{suffix}"):
        Video(path).frames(10, 20)
    with pytest.raises(MediaError, match=f"broken.{suffix}"):
        Video(path).samples(16_000)


def test_a_clip_cut_inside_a_packet_is_called_truncated(tmp_path):
    path = video_file(tmp_path / "cut.flv", np.arange(10) / 10, noise(10, 32, 48, 3), pix_fmt="yuv420p")
    with pytest.raises(MediaError, match="cut.flv is broken or truncated"):
        Video(truncate(path, 0.7)).frames(10, 20)


def test_lists_that_open_other_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video_file(tmp_path / "real.mp4", [0.0], grey_frames(1))
    listing = tmp_path / "list.mp4"
    listing.write_text("ffconcat version 1.0\nfile 'real.mp4'\n")
    with av.open(io.BytesIO(listing.read_bytes())) as container:
        assert container.format.name == "concat"  # FFmpeg itself would open the other file
    with pytest.raises(MediaError, match="list.mp4"):
        Video(listing).frames(1, 4)


def test_limits_of_a_clip(tmp_path):
    path = video_file(tmp_path / "a.mp4", np.arange(10) / 5, grey_frames(10))
    exact = Limits(max_pixels=32 * 48, max_seconds=1.8, max_frames=10, max_bytes=max(10 * 32 * 48 * 3, path.stat().st_size))
    assert len(Video(path).frames(5, 100, exact)[0]) == 10
    for limits in (Limits(max_pixels=32 * 48 - 1), Limits(max_seconds=1.7), Limits(max_frames=9), Limits(max_bytes=32 * 48 * 3 * 9)):
        for source in (path, VideoArray(grey_frames(10), np.arange(10) / 5)):
            with pytest.raises(MediaError, match="limit"):
                Video(source).frames(5, 100, limits)
