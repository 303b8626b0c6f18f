"""What a model reads and writes: parts (text, image, audio, video, function calls), turns of parts, and documents.

One schema serves as the row of a training set, the turn of a chat and the body of a request. Media parts hold a source and
decode it only when asked; a document's form on disk is one line of JSON with relative media paths.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np
import PIL.Image

from pollux import media
from pollux.media import DEFAULT_LIMITS, Limits, Page, VideoArray, media_kind

ROLES = ("user", "model", "system", "tool", "")


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True, eq=False)
class Image:
    """A picture. `source`: bytes of a file, path, URL, uint8 array [H, W, 3], PIL image or page of a PDF (media.pdf_pages)."""

    source: bytes | str | os.PathLike | np.ndarray | PIL.Image.Image | Page

    def pixels(self, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
        """uint8 RGB [H, W, 3]. Raises MediaError."""
        return media.decode_image(self.source, limits)


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound. `source`: bytes of a file, path, URL or float array [n] or [n, channels], which needs its `rate` in Hz."""

    source: bytes | str | os.PathLike | np.ndarray
    rate: int | None = None

    def samples(self, rate: int, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
        """Mono float32 [n] in [-1, 1] at `rate` Hz. Raises MediaError."""
        return media.decode_audio(self.source, self.rate, rate, limits)


@dataclass(frozen=True, eq=False)
class Video:
    """A clip. `source`: bytes of a file, path, URL or VideoArray. `start` and `end`: only that section, in seconds from the first frame,
    as if it were all. `fps`: frames a second to look at, instead of what the model was made for."""

    source: bytes | str | os.PathLike | VideoArray
    start: float = 0.0
    end: float = math.inf
    fps: float | None = None

    def frames(self, fps: float, max_frames: int, limits: Limits = DEFAULT_LIMITS) -> tuple[np.ndarray, np.ndarray]:
        """Frames uint8 [F, H, W, 3] and their times float64 [F] in seconds; fps = 0: by their number, see media.decode_video.

        Raises MediaError.
        """
        return media.decode_video(self.source, fps if self.fps is None else self.fps, max_frames, limits, (self.start, self.end))

    def samples(self, rate: int, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
        """The sound, mono float32 [n] in [-1, 1] at `rate` Hz, sample 0 at the first frame; n = 0 without sound. Raises MediaError."""
        samples = media.decode_video_sound(self.source, rate, limits)
        return samples[round(self.start * rate) : None if self.end == math.inf else round(self.end * rate)]


@dataclass(frozen=True)
class FunctionCall:
    name: str
    args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    id: str | None = None


@dataclass(frozen=True)
class FunctionResponse:
    name: str
    response: Mapping[str, Any] = field(default_factory=dict, hash=False)
    id: str | None = None


Part = Text | Image | Audio | Video | FunctionCall | FunctionResponse
_MEDIA: dict[str, type[Image] | type[Audio] | type[Video]] = {"image": Image, "audio": Audio, "video": Video}


@dataclass(frozen=True)
class Content:
    """One turn; role "" is plain running text without turn markers. Raises ValueError for an unknown role or a part that is none."""

    role: str
    parts: tuple[Part, ...]

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} must be one of {', '.join(map(repr, ROLES))}")
        object.__setattr__(self, "parts", tuple(self.parts))
        for part in self.parts:
            if not isinstance(part, Part):
                raise ValueError(f"a {type(part).__name__} is not a part; wrap it in Text, Image, Audio, Video or use to_contents")


@dataclass(frozen=True)
class Document:
    """A shared prefix and any number of continuations.

    Each branch sees the prefix and itself, never another branch. `align` is a text that means the same as the media in the
    prefix; the two make a pair of the contrastive loss.
    """

    contents: tuple[Content, ...]
    branches: tuple[tuple[Content, ...], ...] = ()
    align: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "contents", tuple(self.contents))
        object.__setattr__(self, "branches", tuple(tuple(branch) for branch in self.branches))

    def to_json(self, base_dir: str | os.PathLike | None = None) -> dict[str, Any]:
        """Plain data for one line of JSON, with media paths relative to base_dir. Raises ValueError for media that are not in files."""
        data: dict[str, Any] = {"contents": _turns_to_json(self.contents, base_dir)}
        if self.branches:
            data["branches"] = [_turns_to_json(branch, base_dir) for branch in self.branches]
        if self.align is not None:
            data["align"] = self.align
        return data

    @classmethod
    def from_json(cls, data: Any, base_dir: str | os.PathLike = "") -> Document:
        """Inverse of to_json; {"parts": [...]} alone is a document of running text. Raises ValueError that says what is wrong."""
        if isinstance(data, dict) and "parts" in data:
            _check_keys("a document of parts", data, required=("parts",), optional=("align",))
            return cls((Content("", _parts_from_json(data["parts"], base_dir)),), align=_check_type("align", data.get("align"), str | None))
        _check_keys("a document", data, required=("contents",), optional=("branches", "align"))
        return cls(
            _turns_from_json("contents", data["contents"], base_dir),
            tuple(_turns_from_json("a branch", branch, base_dir) for branch in _check_type("branches", data.get("branches", []), list)),
            _check_type("align", data.get("align"), str | None),
        )


def to_contents(x: Any) -> tuple[Content, ...]:
    """A string, PIL image, pathlib.Path of a medium or PDF, part, Content or a list of these as turns; bare parts in a row make one user
    turn. A PDF is a picture for each page.

    A string is always text, never a path. Raises ValueError for anything else.
    """
    contents: list[Content] = []
    parts: list[Part] = []
    for item in x if isinstance(x, list | tuple) else [x]:
        if isinstance(item, Content):
            if parts:
                contents.append(Content("user", tuple(parts)))
                parts = []
            contents.append(item)
        elif isinstance(item, os.PathLike) and os.fspath(item).lower().endswith(".pdf"):
            parts += map(Image, media.pdf_pages(item))
        else:
            parts.append(_to_part(item))
    if parts:
        contents.append(Content("user", tuple(parts)))
    if not contents:
        raise ValueError("contents are empty; give at least one string, image, path, part or Content")
    return tuple(contents)


def read_jsonl(path: str | os.PathLike) -> Iterator[Document]:
    """The documents of a JSON-lines file, media paths taken from its folder. Raises ValueError naming the file and line."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    document = Document.from_json(json.loads(line), Path(path).parent)
                except ValueError as error:
                    raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from error
                yield document


def write_jsonl(path: str | os.PathLike, documents: Iterable[Document], media_dir: str | os.PathLike) -> None:
    """Write one document a line. Media in memory become files in media_dir, named by their content: PNG, 16-bit WAV, lossless Matroska.

    Bytes are written as they are. Raises MediaError for arrays that are no medium.
    """

    def stored(contents: tuple[Content, ...]) -> tuple[Content, ...]:
        return tuple(Content(content.role, tuple(_store(part, Path(media_dir)) for part in content.parts)) for content in contents)

    base_dir = Path(path).parent
    base_dir.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for document in documents:
            document = Document(stored(document.contents), tuple(map(stored, document.branches)), document.align)
            file.write(json.dumps(document.to_json(base_dir), ensure_ascii=False) + "\n")


def _to_part(item: Any) -> Part:
    if isinstance(item, Part):
        return item
    if isinstance(item, str):
        return Text(item)
    if isinstance(item, PIL.Image.Image):
        return Image(item)
    if isinstance(item, os.PathLike):
        kind = media_kind(item)
        if kind is None:
            raise ValueError(f"{os.fspath(item)} has no extension of an image, sound or video; wrap it in Image, Audio or Video")
        return _MEDIA[kind](item)
    raise ValueError(f"a {type(item).__name__} is not content; give a string, PIL image, pathlib.Path, part, Content or a list of these")


def _store(part: Part, media_dir: Path) -> Part:
    """The part with its medium in a file of media_dir, if it is in memory."""
    if not isinstance(part, Image | Audio | Video) or isinstance(part.source, str | os.PathLike):
        return part
    if isinstance(part.source, bytes):
        data, suffix = part.source, media.suffix_of(part.source)
    elif isinstance(part, Image):
        data, suffix = media.encode_image(part.pixels()), ".png"
    elif isinstance(part, Audio):
        data, suffix = media.encode_audio(part.source, part.rate or 0), ".wav"
    else:
        data, suffix = media.encode_video(part.source), ".mkv"
    file = media_dir / (hashlib.sha256(data).hexdigest()[:20] + suffix)
    media_dir.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return replace(part, source=file)


def _turns_to_json(contents: tuple[Content, ...], base_dir: str | os.PathLike | None) -> list[dict[str, Any]]:
    return [{"role": content.role, "parts": [_part_to_json(part, base_dir) for part in content.parts]} for content in contents]


def _part_to_json(part: Part, base_dir: str | os.PathLike | None) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"text": part.text}
    if isinstance(part, FunctionCall):
        return {"function_call": {"name": part.name, "args": dict(part.args)} | ({} if part.id is None else {"id": part.id})}
    if isinstance(part, FunctionResponse):
        return {"function_response": {"name": part.name, "response": dict(part.response)} | ({} if part.id is None else {"id": part.id})}
    if isinstance(part, Video) and (part.start, part.end, part.fps) != (0.0, math.inf, None):
        raise ValueError("a section of a clip has no place in JSON; cut the file to it")
    key = type(part).__name__.lower()
    if not isinstance(part.source, str | os.PathLike):
        raise ValueError(f"an {key} in memory has no place in JSON; write_jsonl puts it into a file")
    if base_dir is None or media.is_url(part.source):
        return {key: os.fspath(part.source)}
    return {key: Path(os.path.relpath(part.source, base_dir)).as_posix()}


def _turns_from_json(name: str, data: Any, base_dir: str | os.PathLike) -> tuple[Content, ...]:
    turns = _check_type(name, data, list)
    for turn in turns:
        _check_keys(f"a turn of {name}", turn, required=("role", "parts"))
    return tuple(Content(turn["role"], _parts_from_json(turn["parts"], base_dir)) for turn in turns)


def _parts_from_json(data: Any, base_dir: str | os.PathLike) -> tuple[Part, ...]:
    return tuple(_part_from_json(part, base_dir) for part in _check_type("parts", data, list))


def _part_from_json(data: Any, base_dir: str | os.PathLike) -> Part:
    kinds = ("text", *_MEDIA, "function_call", "function_response")
    if not isinstance(data, dict) or len(data) != 1 or next(iter(data)) not in kinds:
        raise ValueError(f"a part must be an object with one key of {', '.join(kinds)}, not {data!r:.80}")
    ((kind, value),) = data.items()
    if kind == "function_call":
        _check_function(kind, value, "args")
        return FunctionCall(**value)
    if kind == "function_response":
        _check_function(kind, value, "response")
        return FunctionResponse(**value)
    _check_type(kind, value, str)
    if kind == "text":
        half = next((i for i, letter in enumerate(value) if "\ud800" <= letter <= "\udfff"), None)
        if half is not None:
            raise ValueError(f"text has half a surrogate pair, {value[half]!r}, at character {half}: write the whole character")
        return Text(value)
    return _MEDIA[kind](value if media.is_url(value) else Path(base_dir, value))


def _check_type(name: str, value: Any, kind: type | UnionType) -> Any:
    if isinstance(value, kind):
        return value
    names: dict[Any, str] = {str: "a string", str | None: "a string", list: "a list", dict: "an object"}
    raise ValueError(f"{name} must be {names[kind]}, not {value!r:.80}")


def _check_keys(name: str, data: Any, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    _check_type(name, data, dict)
    for key in required:
        if key not in data:
            raise ValueError(f"{name} lacks the key {key!r}")
    unknown = sorted(set(data) - set(required) - set(optional))
    if unknown:
        raise ValueError(f"{name} has no key {', '.join(map(repr, unknown))}; it may have {', '.join(map(repr, required + optional))}")


def _check_function(name: str, data: Any, payload: str) -> None:
    _check_keys(name, data, required=("name", payload), optional=("id",))
    _check_type(f"name of {name}", data["name"], str)
    _check_type(f"{payload} of {name}", data[payload], dict)
    _check_type(f"id of {name}", data.get("id"), str | None)
