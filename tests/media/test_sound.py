"""Decoding real sound files against the tone that went into them; and refusing bad ones."""

import av
import numpy as np
import pytest
import soundfile
from media_files import amplitude, audio_track, noise, tone, truncate

from pollux.content import Audio
from pollux.media import Limits, MediaError

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
    samples = np.random.default_rng(0).integers(-(2**23), 2**23, 1000) / 2**23
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
            audio_track(container, "aac", noise(48_000) / 255 - 0.5, 48_000)()
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


@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_flac_that_was_written_to_a_pipe_is_read_whole(tmp_path, layout):
    samples = tone(0.5, 22_050) if layout == "mono" else np.stack([tone(0.5, 22_050), np.zeros(11_025)], 1)
    soundfile.write(tmp_path / "stream.flac", samples, 22_050, subtype="PCM_16")
    expected = Audio(tmp_path / "stream.flac").samples(22_050)
    data = bytearray((tmp_path / "stream.flac").read_bytes())
    data[21:42] = bytes([data[21] & 0xF0, *bytes(20)])  # STREAMINFO: number of samples and MD5 unknown
    np.testing.assert_allclose(Audio(bytes(data)).samples(22_050), expected, atol=1e-6)
    with pytest.raises(MediaError, match="limit of 0.4 seconds"):
        Audio(bytes(data)).samples(22_050, Limits(max_seconds=0.4))
    with pytest.raises(MediaError, match="broken"):
        Audio(bytes(data[:60])).samples(22_050)


def test_limits_of_a_sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(2.0, 16_000), 16_000)
    soundfile.write(tmp_path / "a.mp3", tone(2.0, 16_000), 16_000)
    assert len(Audio(tmp_path / "a.wav").samples(16_000, Limits(max_seconds=2.0))) == 32_000
    for source, rate in ((tmp_path / "a.wav", None), (tmp_path / "a.mp3", None), (tone(2.0, 16_000), 16_000)):
        with pytest.raises(MediaError, match="limit of 1.9 seconds"):
            Audio(source, rate).samples(16_000, Limits(max_seconds=1.9))
    with pytest.raises(MediaError, match="limit of 100 bytes"):
        Audio(tmp_path / "a.wav").samples(16_000, Limits(max_bytes=100))


def test_a_small_file_of_endless_silence_is_refused(tmp_path):
    soundfile.write(tmp_path / "bomb.flac", np.zeros(1_000_000), 650_000)
    assert (tmp_path / "bomb.flac").stat().st_size < 100_000
    with pytest.raises(MediaError, match="bomb.flac decodes to 4000000 bytes, more than the limit of 3999999"):
        Audio(tmp_path / "bomb.flac").samples(16_000, Limits(max_bytes=3_999_999))
