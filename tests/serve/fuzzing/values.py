"""Values for fields of wire messages: those that make sense, those at limits, and those that no field can hold.

`message(kind)` derives them from the dataclass that the server itself reads a request with, so that new fields are fuzzed without
a word here. Everything is decoded JSON.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import enum
import functools
import io
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from hypothesis import strategies as st

from pollux.media import encode_audio, encode_image, encode_video
from pollux.media.video import VideoArray
from pollux.serve.openai.messages import Message
from pollux.serve.wire.content import Blob, Content, FileData, FunctionCall, FunctionDeclaration, FunctionResponse

Names = Mapping[str, Sequence[str]]
MODEL = "pollux"
LONG = "long " * 40_000  # 200 kB
WORDS = ("a big red circle", "blue?", "x", '{"name": "blue"}', "Grüße 🎈", "line\r\nline", "\t")
HOSTILE_TEXTS = (
    *("", "\x00", "\u202e\ufeff\uffff", "🏳️‍🌈" * 50, "a" * 5000, "<bos><end_of_turn><draw>", "%s%n{0}{}", "../../etc/passwd", "files/../x"),
    *(
        "null",
        "-0",
        "1e999",
        "NaN",
        "true",
        "[]",
        "{}",
        "'\"`;--",
        "\u0661\u0662",
        "http://127.0.0.1/",
        "file:///etc/passwd",
        "data:,",
        "\\ud800",
    ),
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    2**31 - 1,
    2**31,
    -(2**31) - 1,
    2**63 - 1,
    2**63,
    10**40,
    0.5,
    -0.0,
    1e308,
    5e-324,
    1.0000001,
    "3",
    "-7",
    "1e3",
    "4.0",
)
GOOD = {  # of fields -> values that make sense there
    "model": (MODEL, f"models/{MODEL}"),
    "role": ("user", "user", "model"),
    "mime_type": ("image/png", "audio/wav", "video/x-matroska", "text/plain"),
    "response_mime_type": ("application/json", "text/plain"),
    "type": ("text", "user_input", "model_output", "function", "json_object", "image"),
    "name": ("weather", "f"),
    "temperature": (0, 0.7, 2),
    "top_p": (0.1, 0.9, 1),
    "top_k": (0, 1, 20.0, 1000),
    "n": (1, 2, 8),
    "candidate_count": (1, 2, 8),
    "max_output_tokens": (1, 5, 20),
    "max_tokens": (1, 5, 20),
    "max_completion_tokens": (1, 5, 20),
    "logprobs": (0, 1, 5),
    "top_logprobs": (0, 1, 5),
    "dimensions": (1, 8, 32),
    "output_dimensionality": (1, 8, 32),
    "presence_penalty": (-2, 0, 1.5),
    "frequency_penalty": (-2, 0, 1.5),
    "reasoning_effort": ("none", "low"),
    "encoding_format": ("float", "base64"),
    "ttl": ("60s", "1.5s", "3600s"),
    "stop": ("x", ["a", "b"]),
    "stop_sequences": (["e"], ["a", "bl"]),
    "field_mask": ("generationConfig.temperature", "model,tools"),
    "uses": (0, 1, 5),
    "tool_choice": ("none", "auto", "required", {"type": "function", "function": {"name": "weather"}}),
    "content": ("a red", [{"type": "text", "text": "blue"}]),
    "input": ("a red", [{"type": "text", "text": "blue"}], ["a", "b"]),
    "prompt": ("a red", ["a", "b"]),
    "code": ("print(1)",),
    "cached_content": ("",),
    "previous_interaction_id": ("",),
    "priority": (0, 3, "-7"),
}
ODD = {  # -> values that make none, or are at a limit
    "model": ("", "models/nosuch", "pollux:generateContent"),
    "role": ("function", "system", "assistant", "tool", "developer"),
    "mime_type": ("application/json", "audio/pcm;rate=16000", "a/b", "image/png; x=é", "video/mp4"),
    "response_mime_type": ("text/x.enum", "application/xml"),
    "type": ("audio", "video", "document", "thought", "function_call", "function_result", "image_url", "input_audio", "file", "OBJECT"),
    "name": ("files/mine", "a b", "x" * 70),
    "temperature": (2.1, -1),
    "top_p": (0, 1.1),
    "top_k": (-1, 2.5),
    "n": (9, 0),
    "candidate_count": (9, 0),
    "max_output_tokens": (0, 600, 10**6),
    "max_tokens": (0, 600),
    "logprobs": (20, 21, True),
    "top_logprobs": (21, -1),
    "dimensions": (33, 0),
    "output_dimensionality": (33, 0),
    "reasoning_effort": ("extreme",),
    "ttl": ("0s", "-1s", "999999999999s", "1e9s"),
    "stop": ([""], ["a"] * 20),
    "field_mask": ("a..b", "", ","),
    "tool_choice": ({"type": "allowed_tools"}, {"type": "function"}),
}
NEEDED = {  # fields without which a message makes no sense
    Blob: ("mime_type", "data"),
    FileData: ("file_uri",),
    FunctionCall: ("name",),
    FunctionResponse: ("name",),
    FunctionDeclaration: ("name",),
    Content: ("parts",),
    Message: ("role", "content"),
}
SCHEMAS = (
    {"type": "OBJECT", "properties": {"name": {"type": "STRING"}}, "required": ["name"]},
    {"type": "STRING", "enum": ["red", "blue"]},
    {"type": "array", "items": {"type": "integer", "minimum": 3, "maximum": 5}, "maxItems": 2},
    {"type": "string", "pattern": "(a+)+b", "maxLength": 8},
    {"type": "string", "pattern": "("},
    {"$ref": "#"},
    {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}, "$ref": "#/$defs/a"},
    {"anyOf": []},
    {"type": ["string", "null"], "format": "date-time"},
    {"type": "number", "minimum": 5, "maximum": 1},
    {"type": "object", "properties": {"a": {"type": "array", "minItems": 10**9}}, "required": ["a"]},
    {"enum": []},
    {"type": "nosuch"},
    {"type": "object", "additionalProperties": {"type": "integer"}, "patternProperties": {"^x": {}}},
)


@functools.cache
def media() -> dict[str, bytes]:
    """Small media that can be read, by mime type, among them one in an old format of pictures."""
    grey = np.full((12, 16, 3), 90, np.uint8)
    sound = (0.3 * np.sin(np.arange(1600) / 5)).astype(np.float32)
    picture = io.BytesIO()
    PIL.Image.fromarray(grey).save(picture, "GIF")
    clip = VideoArray(np.stack([grey, grey + 50]), np.array([0.0, 0.5]), sound, 16_000)
    return {
        "image/png": encode_image(grey),
        "image/gif": picture.getvalue(),
        "audio/wav": encode_audio(sound, 16_000),
        "video/x-matroska": encode_video(clip),
        "text/plain": b"a red circle",
    }


@st.composite
def medium(draw, wild: bool = True) -> tuple[str, bytes]:
    """A mime type and bytes that are of it or, if wild, may be damaged or of another."""
    kind = draw(st.sampled_from(sorted(media())))
    data = media()[kind]
    damage = draw(st.sampled_from(("none", "none", "cut", "bytes", "zeros", "other", "empty"))) if wild else "none"
    if damage == "cut":
        data = data[: draw(st.integers(0, len(data) - 1))]
    elif damage == "bytes":
        at = draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8))
        broken = bytearray(data)
        for place in at:
            broken[place] = draw(st.integers(0, 255))
        data = bytes(broken)
    elif damage == "zeros":
        data = data[: len(data) // 2] + bytes(len(data) // 2)
    elif damage == "other":
        kind = draw(st.sampled_from((*GOOD["mime_type"], *ODD["mime_type"])))
    elif damage == "empty":
        data = b""
    return kind, data


def hostile() -> st.SearchStrategy[Any]:
    """What hardly any field can hold."""
    scalars = st.one_of(
        st.sampled_from(HOSTILE_TEXTS), st.sampled_from(NUMBERS), st.none(), st.booleans(), st.text(max_size=20), st.just(LONG), st.floats()
    )
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
    )


def plain(wild: bool = True) -> st.SearchStrategy[Any]:
    """JSON of any form."""
    return st.one_of(st.sampled_from(WORDS), st.sampled_from(SCHEMAS), *([hostile()] if wild else []))


@st.composite
def message(draw, kind: type, wild: bool, depth: int = 4, names: Names = types.MappingProxyType({}), most: int = 4) -> dict:
    """A few fields of a message. wild: with values that make no sense. names: of things on the server, by the fields that may name them."""
    made: dict[str, Any] = {}
    taken: set[str] = set()  # groups of which one field may be set
    hints = typing.get_type_hints(kind)
    declared = {field.name: field for field in dataclasses.fields(kind)}
    chosen = draw(st.lists(st.sampled_from(sorted(declared)), unique=True, max_size=most)) if declared else []  # some messages have none
    for name in (*NEEDED.get(kind, ()), *chosen) if not wild else chosen:
        field = declared[name]
        if (group := field.metadata.get("oneof")) in taken and not wild:
            continue
        if group:
            taken.add(group)
        made[_spelled(draw, field)] = draw(_field(name, hints[name], wild, depth, names))
    if {"mimeType", "mime_type"} & set(made) and "data" in made:
        mime, data = draw(medium(wild))
        made |= {name: mime for name in ("mimeType", "mime_type") if name in made} | {"data": base64.b64encode(data).decode()}
    if draw(st.integers(0, 29)) == 0:
        made[draw(st.text(max_size=8))] = draw(plain())  # is ignored
    return made


@st.composite
def _field(draw, name: str, annotation: Any, wild: bool, depth: int, names: Names) -> Any:
    if wild and draw(st.integers(0, 7)) == 0:
        return draw(hostile())
    if name in names and draw(st.integers(0, 2)):
        return draw(st.sampled_from(names[name]))
    if wild and name in ODD and draw(st.booleans()):
        return draw(st.sampled_from(ODD[name]))
    if name in GOOD:
        return draw(st.sampled_from(GOOD[name]))
    return draw(_value(annotation, wild, depth, names))


def _spelled(draw, field: dataclasses.Field) -> str:
    """A name by which the field may be called."""
    snake = field.name
    first, *rest = snake.split("_")
    names = [field.metadata.get("name") or first + "".join(word.capitalize() for word in rest), snake, *field.metadata.get("also", ())]
    return draw(st.sampled_from(names))


def _value(annotation: Any, wild: bool, depth: int, names: Names) -> st.SearchStrategy[Any]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _value(next(a for a in arguments if a is not type(None)), wild, depth, names)
    if origin is tuple:
        one = _value(arguments[0], wild, depth - 1, names)
        return st.one_of(st.lists(one, min_size=0 if wild else 1, max_size=3), one)
    if origin is dict:
        return st.sampled_from(SCHEMAS[: None if wild else 3]) | st.dictionaries(st.text(max_size=6), plain(wild), max_size=3)
    if annotation is Any:
        return plain(wild)
    if dataclasses.is_dataclass(annotation):
        return message(annotation, wild, depth - 1, names) if depth > 0 else st.just({})
    if issubclass(annotation, enum.IntEnum):
        known = [*annotation.__members__, *(name.lower() for name in annotation.__members__), *map(int, annotation)]
        return st.sampled_from([*known, *known, "NO_SUCH", 999, -1, 1.5] if wild else known)
    return (_WILD if wild else _CALM)[annotation]


_CALM: dict[Any, st.SearchStrategy[Any]] = {
    str: st.sampled_from(WORDS) | st.text(max_size=30),
    bool: st.booleans(),
    int: st.integers(0, 40),
    float: st.floats(0, 2),
    bytes: medium(wild=False).map(lambda one: base64.b64encode(one[1]).decode()),
    datetime.timedelta: st.sampled_from(("1s", "0.5s", "3600s")),
    datetime.datetime: st.sampled_from(("2030-01-31T12:00:00Z", "2029-01-01T00:00:00.123456789+02:00")),
}
_WILD: dict[Any, st.SearchStrategy[Any]] = {
    str: st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=30),
    bool: st.booleans(),
    int: st.integers(-2, 40) | st.sampled_from(NUMBERS),
    float: st.floats(-3, 3) | st.sampled_from(NUMBERS),
    bytes: medium().map(lambda one: base64.b64encode(one[1]).decode()) | st.sampled_from(("", "AAA", "-_-_", "!", "AA==AA", "é")),
    datetime.timedelta: st.sampled_from(("0s", "-3s", "315576000000s", "s", "1", ".5s")),
    datetime.datetime: st.sampled_from(("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2030", "", "now")),
}
