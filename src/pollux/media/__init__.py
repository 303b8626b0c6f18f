"""Media from files, bytes, URLs and arrays to plain numpy arrays (pixels, samples, frames with times), and back to files."""

from pollux.media.image import decode_image, encode_image
from pollux.media.pages import pdf_pages
from pollux.media.sound import decode_audio, encode_audio
from pollux.media.source import DEFAULT_LIMITS, Kind, Limits, MediaError, Page, called, is_url, media_kind, suffix_of
from pollux.media.video import VideoArray, decode_video, decode_video_sound, encode_video

__all__ = [
    "called",
    "DEFAULT_LIMITS",
    "Kind",
    "Limits",
    "MediaError",
    "Page",
    "VideoArray",
    "decode_audio",
    "decode_image",
    "decode_video",
    "decode_video_sound",
    "encode_audio",
    "encode_image",
    "encode_video",
    "is_url",
    "media_kind",
    "pdf_pages",
    "suffix_of",
]
