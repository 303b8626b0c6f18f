"""A person's folder as a source of documents.

    notes.md, code.py, story.txt      running text, cut between paragraphs into documents of at most `max_text_bytes`
    cat.png  + cat.txt                picture and its caption        (with `draw` also: the caption as a request, drawn)
    talk.wav + talk.txt               recording and its transcript
    clip.mp4 + clip.txt               video and its description
    pages.jsonl                       one interleaved document a line, media by paths relative to the file

Hidden files are ignored and media stay closed until a document is encoded. A share of the files, chosen by their names,
is held out for evaluation.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pollux.content import Audio, Content, Document, Image, Text, Video
from pollux.data.source import BadFiles
from pollux.media import MediaError, media_kind

TEXT_SUFFIXES = frozenset(
    ".txt .md .markdown .rst .tex .py .pyi .c .h .cc .cpp .hpp .cu .rs .go .java .kt .scala .js .jsx .ts .tsx .css .html .xml"
    " .swift .rb .php .pl .lua .r .jl .hs .ml .clj .ex .erl .cs .sh .bash .sql .toml .yaml .yml .mk .cmake".split()
)
PART = {"image": Image, "audio": Audio, "video": Video}


@dataclass(frozen=True)
class Prompts:
    """What the user says to each kind of media; empty = nothing but the media."""

    image: str = "caption"
    audio: str = "transcribe"
    video: str = "describe"
    draw: str = "draw {caption}"

    def __post_init__(self):
        if "{caption}" not in self.draw:
            raise ValueError(f"the prompt for drawing must contain {{caption}}, got {self.draw!r}")


@dataclass(frozen=True)
class FolderConfig:
    """How folders are read."""

    prompts: Prompts = field(default_factory=Prompts)
    draw: bool = False  # pictures with captions also become drawing documents
    max_text_bytes: int = 4000  # of one document of running text
    held_out: float = 0.02  # share of the files kept for evaluation
    bad_files: BadFiles = "skip"  # a file that cannot be read or is too large is left out and listed, or ends the run

    def __post_init__(self):
        if self.bad_files not in ("skip", "stop"):
            raise ValueError(f"bad_files {self.bad_files!r} must be 'skip' or 'stop'")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out {self.held_out} must be in [0, 1)")
        if self.max_text_bytes < 16:
            raise ValueError(f"max_text_bytes {self.max_text_bytes} must be at least 16")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One document: bytes start to end of a file of text or JSON lines, or a medium with its side-car."""

    path: Path
    kind: Literal["text", "line", "image", "audio", "video", "draw"]
    start: int = 0
    end: int = 0
    line: int = 0


class FolderSource:
    """The documents of a folder in a fixed order: files by name, within a file from its start.

    Raises ValueError if the folder is missing or holds no documents. `left_out` maps files and lines that give none to
    the reason.
    """

    def __init__(self, path: str | Path, config: FolderConfig = FolderConfig()):
        self.path = Path(path)
        self.config = config
        self.left_out: dict[str, str] = {}
        if not self.path.is_dir():
            raise ValueError(f"{self.path} is not a folder; a folder source needs the path of one")
        self._entries: list[_Entry] = []
        self._held_out: list[_Entry] = []
        for entry in self._scan():
            (self._held_out if self._is_held_out(entry) else self._entries).append(entry)
        if not self._entries:
            raise ValueError(
                f"{self.path} has no documents; put in text files, media with a .txt of the same name beside, or .jsonl documents"
            )

    def __repr__(self) -> str:
        return f"FolderSource({str(self.path)!r}, {self.length} documents)"

    @property
    def length(self) -> int:
        return len(self._entries)

    @property
    def bad_files(self) -> BadFiles:
        return self.config.bad_files

    def origin(self, index: int) -> str:
        """The file of a document, and its line in JSON lines."""
        return _name(self._entries[index])

    def held_out(self) -> FolderSource:
        """The documents of the files that are kept for evaluation, maybe none."""
        other = copy.copy(self)
        other._entries = self._held_out
        return other

    def document(self, index: int) -> Document:
        """Document `index`. Media are not opened here, so only text and JSON lines can raise MediaError."""
        entry = self._entries[index]
        if entry.kind == "text":
            return Document((Content("", (Text(_decode(entry.path, _read(entry))),)),))
        if entry.kind == "line":
            return _parse(entry, _read(entry))
        caption, prompts = _side_car(entry.path), self.config.prompts
        if entry.kind == "draw":
            return Document((Content("user", (Text(prompts.draw.replace("{caption}", caption)),)), Content("model", (Image(entry.path),))))
        prompt = getattr(prompts, entry.kind)
        parts = (PART[entry.kind](entry.path), *([Text(prompt)] if prompt else []))
        return Document((Content("user", parts), Content("model", (Text(caption),))))

    def _scan(self) -> Iterator[_Entry]:
        found = files(self.path)
        present = set(found)
        lines: dict[Path, list[_Entry]] = {}
        used: set[Path] = set()  # media that a document names need no side-car
        for file in found:
            if file.suffix.lower() == ".jsonl":
                lines[file] = list(self._guard(str(file), self._scan_lines(file, used)))
        captions = {file.with_suffix(".txt") for file in found if media_kind(file)}
        for file in found:
            kind = media_kind(file)
            if file in lines:
                yield from lines[file]
            elif kind is not None and file.with_suffix(".txt") in present:
                yield from self._guard(str(file), self._scan_medium(file, kind))
            elif kind is None and file.suffix.lower() in TEXT_SUFFIXES and file not in captions:
                yield from self._guard(str(file), self._scan_text(file))
            elif kind is not None and file.resolve() not in used:
                self.left_out[str(file)] = f"no text beside it ({file.stem}.txt)"

    def _guard(self, name: str, entries: Iterator[_Entry]) -> Iterator[_Entry]:
        """Applies the policy for bad files to what a scan yields."""
        try:
            yield from entries
        except MediaError as error:
            if self.config.bad_files == "stop":
                raise
            self.left_out[name] = str(error).removeprefix(f"{name} ")

    def _scan_text(self, file: Path) -> Iterator[_Entry]:
        data = _read(_Entry(file, "text"))
        _decode(file, data)
        for start, end in cut(data, self.config.max_text_bytes):
            if data[start:end].strip():
                yield _Entry(file, "text", start, end)

    def _scan_medium(self, file: Path, kind: Literal["image", "audio", "video"]) -> Iterator[_Entry]:
        _side_car(file)
        yield _Entry(file, kind)
        if kind == "image" and self.config.draw:
            yield _Entry(file, "draw")

    def _scan_lines(self, file: Path, used: set[Path]) -> Iterator[_Entry]:
        start = 0
        for number, line in enumerate(_read(_Entry(file, "line")).splitlines(keepends=True), 1):
            entry = _Entry(file, "line", start, start + len(line), number)
            start += len(line)
            if line.strip():
                yield from self._guard(_name(entry), self._scan_line(entry, line, used))

    def _scan_line(self, entry: _Entry, line: bytes, used: set[Path]) -> Iterator[_Entry]:
        used.update(_media_paths(_parse(entry, line)))
        yield entry

    def _is_held_out(self, entry: _Entry) -> bool:
        # The name without its suffix, so that media which share a side-car fall on the same side; JSON lines go line by line.
        name = entry.path.relative_to(self.path)
        key = (name if entry.kind in ("text", "line") else name.with_suffix("")).as_posix() + (f":{entry.line}" if entry.line else "")
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) < self.config.held_out * 2**64


def cut(data: bytes, size: int) -> Iterator[tuple[int, int]]:
    """Cuts UTF-8 text into (start, end) of at most `size` bytes: in the second half of a piece at the last end of a paragraph, else
    of a line, else of a word, else of a character. The pieces are the text, without gap or overlap."""
    start = 0
    while len(data) - start > size:
        window = data[start : start + size]
        for boundary in (rb"\n[ \t\r]*\n\s*", rb"\n", rb"\s"):
            length = max((match.end() for match in re.finditer(boundary, window)), default=0)
            if length >= size // 2:
                break
        else:
            length = size
            while data[start + length] & 0xC0 == 0x80:  # a continuation byte of UTF-8
                length -= 1
        yield start, start + length
        start += length
    if start < len(data):
        yield start, len(data)


def files(folder: Path) -> list[Path]:
    """Every file below a folder that is not hidden, by name."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def _name(entry: _Entry) -> str:
    return f"{entry.path}, line {entry.line}" if entry.line else str(entry.path)


def _read(entry: _Entry) -> bytes:
    try:
        with open(entry.path, "rb") as file:
            file.seek(entry.start)
            return file.read(entry.end - entry.start if entry.end else -1)
    except OSError as error:
        raise MediaError(f"{entry.path} cannot be read: {error.strerror}") from error


def _decode(file: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MediaError(f"{file} is not text in UTF-8 (byte {error.start}); save it as UTF-8") from error


def _side_car(file: Path) -> str:
    path = file.with_suffix(".txt")
    caption = _decode(path, _read(_Entry(path, "text"))).strip()
    if not caption:
        raise MediaError(f"{path} is empty; it should hold the text that belongs to {file.name}")
    return caption


def _parse(entry: _Entry, line: bytes) -> Document:
    try:
        return Document.from_json(json.loads(_decode(entry.path, line)), entry.path.parent)
    except MediaError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise MediaError(f"{_name(entry)} is not a document: {error}") from error


def _media_paths(document: Document) -> Iterator[Path]:
    for contents in (document.contents, *document.branches):
        for content in contents:
            for part in content.parts:
                if isinstance(part, Image | Audio | Video) and isinstance(part.source, str | Path) and "://" not in str(part.source):
                    yield Path(part.source).resolve()
