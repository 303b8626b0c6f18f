"""Documents become one sequence, and generated ids become parts again.

The layout is `<bos>`, then for every turn `<role>` parts `<end_of_turn>`; role "" has no markers and, alone, ends with `<eos>`.
Everything in a model turn after `<model>` is a target, and so is the text of role "". A picture in a model turn is drawn with the
codec's codes; all other media are soft tokens between markers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np

from pollux.content import Audio, Content, Document, FunctionCall, FunctionResponse, Image, Part, Text, Video
from pollux.media import DEFAULT_LIMITS, Kind, Limits, MediaError, called
from pollux.tokens import audio, image, video
from pollux.tokens.calls import QUOTE, declare, read_call
from pollux.tokens.config import TokensConfig
from pollux.tokens.sequence import Modality, Sequence, Soft
from pollux.tokens.template import MARKS
from pollux.tokens.vocabulary import Vocabulary

ALIGN_BRANCH = -1

_KINDS: dict[type, Kind] = {Image: "image", Audio: "audio", Video: "video"}


class PictureCodec(Protocol):
    """What drawing needs of a codec: digit sizes, (height, width) in pixels, and codes int32 [B, L, digits] of uint8 [B, H, W, 3]."""

    @property
    def levels(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> tuple[int, int]: ...
    def encode(self, images: np.ndarray) -> np.ndarray: ...
    def decode(self, codes: np.ndarray) -> np.ndarray: ...


def encode(
    document: Document,
    vocabulary: Vocabulary,
    config: TokensConfig,
    codec: PictureCodec | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Sequence:
    """One sequence of a document, its branches and its aligned text.

    Raises ValueError if a model turn holds media it cannot produce or a picture without a codec, if a branch does not open with
    a turn, or if there is a text to align but no media; MediaError (a ValueError) if a file cannot be read.
    """
    writer = Writer(vocabulary, config, codec, limits)
    writer.aligning = document.align is not None
    ids = vocabulary.specials
    if vocabulary.template is not None:
        return vocabulary.template.write_document(writer, document).sequence()
    writer.write([ids["<bos>"]])
    for content in document.contents:
        writer.turn(content)
    if not document.branches and all(content.role == "" for content in document.contents):
        writer.write([ids["<eos>"]], target=1)
    if writer.aligning and not writer.soft:
        raise ValueError("a document with a text to align needs an image, audio or video in its contents")
    writer.aligning = False
    for number, branch in enumerate(document.branches, start=1):
        if not branch or branch[0].role == "":
            raise ValueError(f"branch {number} must open with a turn that has a role, or its first token has nothing to follow")
        writer.start_branch(number)
        for content in branch:
            writer.turn(content)
    if document.align is not None:
        writer.start_branch(ALIGN_BRANCH)
        writer.write([ids["<bos>"]])
        writer.write(vocabulary.encode_text(document.align), pool=2)
    return writer.sequence()


def encode_prompt(
    contents: Iterable[Content],
    vocabulary: Vocabulary,
    config: TokensConfig,
    codec: PictureCodec | None = None,
    limits: Limits = DEFAULT_LIMITS,
    variables: Mapping[str, Any] | None = None,
) -> Sequence:
    """One sequence that a model continues: it ends with `<model>`, inside the last turn if that is the model's, or in the
    running text if the last content has role "". variables: `tools`, declarations of functions (tokens/calls.py), and what else the chat
    template of a model that has one reads.
    Raises ValueError as `encode` does."""
    contents = tuple(contents)
    writer = Writer(vocabulary, config, codec, limits)
    if vocabulary.template is not None:
        return vocabulary.template.write_prompt(writer, contents, variables or {}).sequence()
    variables = dict(variables or {})
    tools = variables.pop("tools", None)
    if variables:
        raise ValueError(f"{', '.join(variables)}: this model has no chat template that reads them")
    if tools:
        contents = (declare(tools), *contents)
    writer.write([vocabulary.specials["<bos>"]])
    for content in contents[:-1]:
        writer.turn(content)
    last = contents[-1] if contents else None
    if last is not None:
        writer.turn(last, close=last.role != "model")
    if last is None or last.role not in ("model", ""):
        writer.write([vocabulary.specials["<model>"]])
    return writer.sequence()


def count(sequence: Sequence) -> dict[str, int]:
    """Tokens per modality, for example {"text": 12, "image": 258}; the markers and times of a soft medium count as that medium."""
    numbers = np.bincount(sequence.modality, minlength=len(Modality))
    return {modality.name.lower(): int(numbers[modality]) for modality in Modality if numbers[modality]}


def decode_parts(ids: Iterable[int], vocabulary: Vocabulary, codec: PictureCodec | None = None) -> tuple[Part, ...]:
    """Parts of what a model wrote after `<model>`: Text, Image (uint8 array) and FunctionCall, in order; thoughts are left out.

    Reading ends at an id that ends a turn. A picture or call whose closing token never came is left out, a call that cannot be
    read is returned as Text. Raises ValueError if there is a picture but no codec, or its codes are not in order.
    """
    specials = vocabulary.specials
    openings = {specials[name]: name for name in ("<draw>", "<call>", "<thought>") if name in specials}
    parts: list[Part] = []
    span: list[int] = []
    opened = ""
    for i in map(int, ids):
        if i in vocabulary.stops:
            break
        if i in openings:
            parts += _text(span, vocabulary) if not opened else ()
            opened, span = openings[i], []
        elif opened and i == specials["</" + opened[1:]]:
            if opened != "<thought>":
                parts.append(_picture(span, vocabulary, codec) if opened == "<draw>" else _call(span, vocabulary))
            opened, span = "", []
        elif opened == "<call>" or i not in vocabulary.special_ids:
            span.append(i)
    return (*parts, *_text(span, vocabulary)) if not opened else tuple(parts)


def _text(ids: list[int], vocabulary: Vocabulary) -> tuple[Part, ...]:
    return (Text(vocabulary.decode(ids)),) if ids else ()


def _picture(ids: list[int], vocabulary: Vocabulary, codec: PictureCodec | None) -> Image:
    if codec is None:
        raise ValueError("the model drew a picture but there is no image codec to decode it: load one beside the model")
    return Image(codec.decode(vocabulary.codes(np.array(ids, np.int32))[None])[0])


def _call(ids: list[int], vocabulary: Vocabulary) -> Part:
    """The call of ids between its markers. Where a quotation mark is a token, text that spells one does not end a string."""
    text, quote = vocabulary.decode(ids), vocabulary.tokenizer.token_to_id(QUOTE)
    if quote is None:
        return read_call(text)
    mark = next(mark for mark in MARKS if mark not in text)
    pieces = [list(piece) for _, piece in itertools.groupby(ids, lambda i: i == quote)]
    call = read_call("".join(mark * len(piece) if piece[0] == quote else vocabulary.decode(piece) for piece in pieces), mark)
    return Text(text) if isinstance(call, Text) else call


class Writer:
    """Appends tokens run by run; the arrays of the sequence are built once, at the end. Also for template.py."""

    def __init__(self, vocabulary: Vocabulary, config: TokensConfig, codec: PictureCodec | None, limits: Limits):
        if codec is not None and tuple(codec.levels) != vocabulary.code_levels:
            raise ValueError(f"the codec has levels {tuple(codec.levels)} but the vocabulary {vocabulary.code_levels}")
        self.vocabulary, self.config, self.codec, self.limits = vocabulary, config, codec, limits
        self.ids: list[int] = []
        self.runs: list[tuple[int, float, int, int, int]] = []  # length, target, modality, group, pool
        self.soft: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}  # start, features, coord
        self.branches = [(0, 0)]  # branch, start
        self.num_groups = 0
        self.aligning = False  # soft positions are the media side of a contrastive pair

    def start_branch(self, branch: int) -> None:
        self.branches.append((branch, len(self.ids)))

    def write(self, ids: list[int], target: float = 0, modality: Modality = Modality.TEXT, group: int = 0, pool: int = 0) -> None:
        self.ids += ids
        self.runs.append((len(ids), target, modality, group, pool))

    def write_soft(self, modality: Modality, features: np.ndarray, coord: np.ndarray, group: int) -> None:
        if not len(features):
            return
        name = modality.name.lower()
        self.soft.setdefault(name, []).append((len(self.ids), features, coord))
        self.write([self.vocabulary.specials[f"<{name}_soft>"]] * len(features), modality=modality, group=group, pool=int(self.aligning))

    def turn(self, content: Content, close: bool = True) -> None:
        """One content; `close=False` leaves the turn open."""
        if content.role:
            self.write([self.vocabulary.specials[f"<{content.role}>"]])
        target = float(content.role in ("model", ""))
        for part in content.parts:
            if isinstance(part, Text):
                self.write(self.vocabulary.encode_text(part.text), target)
            elif isinstance(part, FunctionCall | FunctionResponse):
                self.function(part, target)
            elif content.role != "model":
                self.media(part)
            elif isinstance(part, Image):
                self.draw(part)
            else:
                raise ValueError(f"a model turn holds {type(part).__name__}, but a model writes only text, calls and pictures")
        if content.role and close:
            self.write([self.vocabulary.specials["<end_of_turn>"]], float(content.role == "model"))

    def function(self, part: FunctionCall | FunctionResponse, target: float) -> None:
        name = "call" if isinstance(part, FunctionCall) else "response"
        fields = {key: value for key, value in asdict(part).items() if value is not None}
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        self.write(
            [self.vocabulary.specials[f"<{name}>"], *self.vocabulary.encode_text(text), self.vocabulary.specials[f"</{name}>"]], target
        )

    def draw(self, part: Image) -> None:
        if self.codec is None:
            raise ValueError("a model turn holds an image, which is drawn with an image codec, but there is none: train one or pass codec")
        pixels = image.resize(part.pixels(self.limits), *self.codec.size)
        digits = self.vocabulary.code_ids(np.asarray(self.codec.encode(pixels[None])[0])).tolist()
        self.write([self.vocabulary.specials["<draw>"]], target=1)
        self.write([*digits, self.vocabulary.specials["</draw>"]], target=1, modality=Modality.DRAW)

    def media(self, part: Image | Audio | Video, before: str = "") -> None:
        """A medium; a clip comes with the text before it, which is tokenised together with its first time. Raises MediaError that names
        the file."""
        try:
            self.soft_tokens(part, before)
        except MediaError as error:
            name = called(_KINDS[type(part)], part.source)
            raise MediaError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error

    def soft_tokens(self, part: Image | Audio | Video, before: str) -> None:
        config = self.config
        if isinstance(part, Image):
            features, coord = image.patches(part.pixels(self.limits), config.image)
            self.span(Modality.IMAGE, features, coord, self.new_group(config.image.two_way))
        elif isinstance(part, Audio):
            samples = part.samples(config.audio.rate, self.limits)
            coord = audio.coordinates(len(samples), config.audio)
            self.span(Modality.AUDIO, audio.tokens(samples, config.audio), coord, self.new_group(config.audio.two_way))
        elif config.video.pictures:
            self.pictures(part, before)
        else:
            self.write(self.vocabulary.encode_text(before))
            self.video(part)

    def pictures(self, part: Video, before: str) -> None:
        """A clip as its frames, each after its time."""
        config, ids = self.config.video, self.vocabulary.specials
        still = replace(self.config.image, max_tokens=config.max_tokens)
        text = len(self.vocabulary.encode_text(before))
        for frame, time in zip(*part.frames(config.fps, config.max_frames, self.limits), strict=True):
            written = self.vocabulary.encode_text(f"{before}{video.clock_text(time)} ")
            self.write(written[:text])
            self.write([*written[text:], ids["<image>"]], modality=Modality.VIDEO)
            self.write_soft(Modality.VIDEO, *image.patches(frame, still), self.new_group(still.two_way))
            self.write([ids["</image>"]], modality=Modality.VIDEO)
            before, text = " ", 0

    def video(self, part: Video) -> None:
        config = self.config.video
        frames, times = part.frames(config.fps, config.max_frames, self.limits)
        sound = part.samples(self.config.audio.rate, self.limits) if config.sound else np.zeros(0, np.float32)
        group = self.new_group(config.two_way)
        self.write([self.vocabulary.specials["<video>"]], modality=Modality.VIDEO, group=group)
        for frame in video.tokens(frames, times, sound, config, self.config.audio):
            self.write(self.vocabulary.encode_text(frame.time), modality=Modality.VIDEO, group=group)
            self.write_soft(Modality.VIDEO, frame.features, frame.coord, group)
            if len(frame.sound):
                coord = audio.coordinates(len(frame.sound) * self.config.audio.samples_per_token, self.config.audio)
                self.span(Modality.AUDIO, frame.sound, coord, group, markers=group)
        self.write([self.vocabulary.specials["</video>"]], modality=Modality.VIDEO, group=group)

    def span(self, modality: Modality, features: np.ndarray, coord: np.ndarray, group: int, markers: int = 0) -> None:
        """Soft tokens in `group` between markers, which are causal unless they lie inside a clip."""
        name = modality.name.lower()
        self.write([self.vocabulary.specials[f"<{name}>"]], modality=modality, group=markers)
        self.write_soft(modality, features, coord, group)
        self.write([self.vocabulary.specials[f"</{name}>"]], modality=modality, group=markers)

    def new_group(self, two_way: bool) -> int:
        self.num_groups += two_way
        return self.num_groups if two_way else 0

    def sequence(self) -> Sequence:
        lengths, *columns = zip(*self.runs, strict=True)
        dtypes = (np.float32, np.int8, np.int32, np.int8)
        target, modality, group, pool = (np.repeat(np.array(c, d), lengths) for c, d in zip(columns, dtypes, strict=True))
        branch = np.zeros(len(self.ids), np.int32)
        position = np.arange(len(self.ids), dtype=np.int32)
        prefix = self.branches[1][1] if len(self.branches) > 1 else len(self.ids)
        for number, start in self.branches[1:]:  # in order of start, so each overwrites the tail of the one before
            branch[start:] = number
            position[start:] = np.arange(len(self.ids) - start) + (prefix if number > 0 else 0)
        soft = {name: _soft(spans) for name, spans in self.soft.items()}
        return Sequence(np.array(self.ids, np.int32), target, position, branch, group, modality, pool, soft)


def _soft(spans: list[tuple[int, np.ndarray, np.ndarray]]) -> Soft:
    starts, features, coords = zip(*spans, strict=True)
    index = np.concatenate([np.arange(start, start + len(f), dtype=np.int32) for start, f in zip(starts, features, strict=True)])
    return Soft(np.concatenate(features), index, np.concatenate(coords))
