"""Files with tracks (mp4, mkv, m4a, ...): opening them through FFmpeg, and a survey of their packets before decoding."""

from __future__ import annotations

import io
from typing import BinaryIO, Literal

import av
import numpy as np
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from pollux.media.source import Limits, MediaError, check_pixels, check_seconds

# Demuxers that open other files or URLs (HLS, concat, DASH) are left out on purpose, those of libsndfile's formats because it reports
# truncation and FFmpeg does not.
FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,flv,aac"


def open_container(name: str, file: BinaryIO, formats: str = FORMATS) -> InputContainer:
    """Open a file from its start. Raises MediaError if it has no tracks, av.FFmpegError if it has none of the formats."""
    file.seek(0)
    container = av.open(file, "r", options={"format_whitelist": formats})
    if not container.streams:
        container.close()
        raise MediaError(f"{name} is broken or truncated: it has no tracks")
    return container


def start_time(stream: Stream) -> float:
    """The stream's own zero in seconds on the container's clock."""
    return float((stream.start_time or 0) * (stream.time_base or 0))


def survey(name: str, file: BinaryIO, kind: Literal["video", "audio"], limits: Limits, formats: str = FORMATS) -> np.ndarray:
    """Read all packets without decoding; return when those of the first track of the kind start: float64 [packets], ascending, in seconds
    from the track's start.

    Raises MediaError if the file is truncated, exceeds the limits or has no such track.
    """
    size = file.seek(0, io.SEEK_END)
    with open_container(name, file, formats) as container:
        stream = next((stream for stream in container.streams if stream.type == kind), None)
        if stream is None:
            raise MediaError(f"{name} has no {kind} track")
        if stream.codec_context is None:
            raise MediaError(f"{name} is truncated or in a codec that cannot be decoded")
        if isinstance(stream, VideoStream):
            check_pixels(name, stream.codec_context.width, stream.codec_context.height, limits)
        ends = [entry.pos + entry.size for track in container.streams for entry in track.index_entries]
        if "matroska" in container.format.name:
            ends.append(_matroska_end(file))
        if max(ends, default=0) > size:
            raise MediaError(f"{name} is truncated: it has {size} of at least {max(ends)} bytes")
        origin, times = start_time(stream), []
        for packet in container.demux():
            if packet.is_corrupt:
                raise MediaError(f"{name} is broken or truncated: a packet is damaged")
            ticks = packet.dts if packet.pts is None else packet.pts
            if ticks is None or packet.time_base is None:
                continue
            if packet.stream.index == stream.index and not packet.is_discard:
                times.append(max(0.0, float(ticks * packet.time_base) - origin))
                check_seconds(name, times[-1], limits)
                if kind == "video" and len(times) > limits.max_frames:
                    raise MediaError(f"{name} has more than the limit of {limits.max_frames} frames")
        if not times:
            raise MediaError(f"{name} is broken or truncated: its {kind} track is empty")
        return np.sort(times)


def _matroska_end(file: BinaryIO) -> int:
    """Where the file ends by the size that its Segment element tells, 0 if it tells none (RFC 9559, live recordings)."""
    position = file.tell()
    file.seek(0)
    head = file.read(4096)
    file.seek(position)
    start = head.find(b"\x18\x53\x80\x67") + 4
    if not 4 <= start < len(head):
        return 0
    width = 9 - head[start].bit_length()
    unknown = (1 << 7 * width) - 1
    told = int.from_bytes(head[start : start + width], "big") & unknown
    return 0 if told == unknown else start + width + told
