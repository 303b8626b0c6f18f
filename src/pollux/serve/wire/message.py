"""Messages of the API are frozen dataclasses, and their fields are the one schema from which proto-JSON is read and written.

A field may be written in camelCase or snake_case, an integer as a number or a string, an enum by name or number. Types of fields:
str, bool, int, float, bytes (base64), enum.IntEnum, datetime (RFC 3339), timedelta ("3.5s"), Any and dict[str, Any] (plain JSON),
another message, tuple[X, ...], dict[str, X] and X | None. A field's default stands for "not given"; one without is always written.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pollux.serve.errors import invalid

M = TypeVar("M")
Reader = Callable[[Any, str, list[str]], Any]  # value, its path, where to note ignored fields

_DURATION = re.compile(r"(-?\d{1,12})(\.\d{1,9})?s")
_WIDTHS = {32: "a 32-bit", 64: "a 64-bit"}


def wire(*, name: str = "", also: tuple[str, ...] = (), oneof: str = "", bits: int = 32, default: Any = None) -> Any:
    """A field with a name of its own on the wire, other names that mean it, a group of which only one may be given, or 64 bits."""
    return dataclasses.field(default=default, metadata={"name": name, "also": also, "oneof": oneof, "bits": bits})


def parse(kind: type[M], data: Any, where: str = "") -> tuple[M, list[str]]:
    """The message in decoded JSON, and the paths of fields that it does not know. Raises ApiError 400 that names the field."""
    ignored: list[str] = []
    return _message(kind)(data, where, ignored), ignored  # type: ignore[arg-type]


def to_json(message: Any, numbers: bool = False) -> dict[str, Any]:
    """Plain data for JSON, in camelCase, without fields that have their default; 64-bit integers as strings. numbers: enums by number."""
    data = {}
    for field in _fields(type(message)):  # type: ignore[arg-type]
        value = getattr(message, field.attribute)
        if value is not None and value != field.default:
            data[field.name] = str(value) if field.bits == 64 else _plain(value, numbers)
    return data


@dataclass(frozen=True)
class _Field:
    attribute: str
    name: str
    oneof: str
    default: Any
    bits: int
    read: Reader


@functools.cache
def _fields(kind: Any) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(kind)
    return tuple(
        _Field(
            field.name,
            field.metadata.get("name") or _camel(field.name),
            field.metadata.get("oneof", ""),
            field.default if field.default_factory is dataclasses.MISSING else field.default_factory(),
            field.metadata.get("bits", 32),
            _reader(hints[field.name], field.metadata.get("bits", 32)),
        )
        for field in dataclasses.fields(kind)
    )


@functools.cache
def _message(kind: Any) -> Callable[[Any, str, list[str]], Any]:
    by_name: dict[str, _Field] = {}
    for declared, field in zip(dataclasses.fields(kind), _fields(kind), strict=True):
        for name in (field.name, _snake(field.name), *declared.metadata.get("also", ())):
            by_name[name] = field

    def read(data: Any, where: str, ignored: list[str]) -> Any:
        if not isinstance(data, dict):
            raise invalid(f"{where or 'the request'} must be an object, not {_shown(data)}")
        values: dict[str, Any] = {}
        taken: dict[str, str] = {}
        for name, value in data.items():
            field, path = by_name.get(name), f"{where}.{name}" if where else name
            if field is None:
                ignored.append(path)
                continue
            if value is None:
                continue
            if field.oneof in taken and taken[field.oneof] != field.attribute:
                raise invalid(f"{path} and {taken[field.oneof]} are mutually exclusive: only one of them may be set")
            if field.oneof:
                taken[field.oneof] = field.attribute
            values[field.attribute] = field.read(value, path, ignored)
        return kind(**values)

    return read


def _reader(annotation: Any, bits: int) -> Reader:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _reader(next(a for a in arguments if a is not type(None)), bits)
    if origin is tuple:
        return functools.partial(_list, _reader(arguments[0], bits))
    if origin is dict or origin is Mapping:
        return functools.partial(_map, _reader(arguments[1], bits))
    if annotation is Any:
        return lambda value, where, ignored: value
    if dataclasses.is_dataclass(annotation):  # looked up when used: a message may hold itself
        return lambda value, where, ignored: _message(annotation)(value, where, ignored)  # type: ignore[arg-type]
    if issubclass(annotation, enum.IntEnum):
        return functools.partial(_enum, annotation)
    if annotation is int:
        return functools.partial(_integer, bits)
    return _SCALARS[annotation]


def _list(item: Reader, value: Any, where: str, ignored: list[str]) -> tuple:
    if isinstance(value, dict):  # the original takes one message for a list of one, and its guides write so
        return (item(value, where, ignored),)
    if not isinstance(value, list):
        raise invalid(f"{where} must be a list, not {_shown(value)}")
    return tuple(item(one, f"{where}[{i}]", ignored) for i, one in enumerate(value))


def _map(item: Reader, value: Any, where: str, ignored: list[str]) -> dict:
    if not isinstance(value, dict):
        raise invalid(f"{where} must be an object, not {_shown(value)}")
    return {key: item(one, f"{where}.{key}", ignored) for key, one in value.items()}


def _text(value: Any, where: str, ignored: list[str]) -> str:
    if not isinstance(value, str):
        raise invalid(f"{where} must be a string, not {_shown(value)}")
    return value


def _flag(value: Any, where: str, ignored: list[str]) -> bool:
    if not isinstance(value, bool):
        raise invalid(f"{where} must be true or false, not {_shown(value)}")
    return value


def _integer(bits: int, value: Any, where: str, ignored: list[str]) -> int:
    number = _number(value) if not isinstance(value, int) or isinstance(value, bool) else value
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,20}", value):
        number = int(value)
    if number is None or not math.isfinite(number) or number != int(number):
        raise invalid(f"{where} must be an integer, not {_shown(value)}")
    if not -(1 << bits - 1) <= number < 1 << bits - 1:
        raise invalid(f"{where} is {_shown(value)}, which is not {_WIDTHS[bits]} integer")
    return int(number)


def _float(value: Any, where: str, ignored: list[str]) -> float:
    number = _number(value)
    if number is None or not math.isfinite(number):
        raise invalid(f"{where} must be a finite number, not {_shown(value)}")
    return float(number)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value) if not isinstance(value, str) or len(value) < 400 else None
    except (ValueError, OverflowError):  # no number, or an integer beyond all floats
        return None


def _bytes(value: Any, where: str, ignored: list[str]) -> bytes:
    _text(value, where, ignored)
    try:
        plain = value.translate(_URL_SAFE).rstrip("=")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{where} is not base64: {error}") from error


def _enum(kind: type[enum.IntEnum], value: Any, where: str, ignored: list[str]) -> enum.IntEnum:
    if isinstance(value, str) and value.upper() in kind.__members__:
        return kind[value.upper()]
    number = _number(value) if not isinstance(value, str) else None
    if number is not None and number in kind._value2member_map_:
        return kind(int(number))
    raise invalid(f"{where} must be one of {', '.join(kind.__members__)}, not {_shown(value)}")


def _duration(value: Any, where: str, ignored: list[str]) -> datetime.timedelta:
    match = _DURATION.fullmatch(_text(value, where, ignored))
    try:
        if match:
            return datetime.timedelta(seconds=float(match[1] + (match[2] or "")))
    except OverflowError as error:
        raise invalid(f"{where} is {value}, which is too long") from error
    raise invalid(f'{where} must be seconds such as "300s" or "1.5s", not {_shown(value)}')


def _time(value: Any, where: str, ignored: list[str]) -> datetime.datetime:
    try:
        time = datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", _text(value, where, ignored)))
        return time.astimezone(datetime.UTC) if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    except (ValueError, OverflowError) as error:
        raise invalid(f'{where} must be a time such as "2030-01-31T12:00:00Z", not {_shown(value)}') from error


_URL_SAFE = str.maketrans("-_", "+/", "\r\n")  # the tool base64 breaks lines
_SCALARS: dict[Any, Reader] = {
    str: _text,
    bool: _flag,
    float: _float,
    bytes: _bytes,
    datetime.timedelta: _duration,
    datetime.datetime: _time,
}


def _plain(value: Any, numbers: bool) -> Any:
    if type(value) in (str, int, bool):  # most are, and chunks of streams are many
        return value
    if dataclasses.is_dataclass(value):
        return to_json(value, numbers)
    if isinstance(value, enum.IntEnum):
        return value.value if numbers else value.name
    if isinstance(value, dict):
        return {key: _plain(item, numbers) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, numbers) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, datetime.timedelta):
        return f"{value.total_seconds():.9f}".rstrip("0").rstrip(".") + "s"
    return value


def _camel(name: str) -> str:
    return re.sub(r"(?<=[^_])_([a-z0-9])", lambda match: match[1].upper(), name)


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda match: "_" + match[0].lower(), name)


def _shown(value: Any) -> str:
    return f"{value!r:.60}" if not isinstance(value, dict | list) else "an object" if isinstance(value, dict) else "a list"
