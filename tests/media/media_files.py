"""Real files to decode, made with Pillow, soundfile and PyAV, with contents that tell what was decoded."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image

TONE = 440.0  # Hz


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


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
