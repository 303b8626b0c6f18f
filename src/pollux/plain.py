"""Configs as plain JSON data, as dataclasses.asdict writes them: read back into frozen dataclasses, and laid out field by field."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def from_plain(kind: type[T], data: Any, name: str = "") -> T:
    """A dataclass of `kind` from plain data; fields that are not given have their defaults. `name`: of the data, for messages.

    Raises ValueError that names an unknown or a missing field, or a part that is no object or list.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{name or kind.__name__} must be an object of its fields, not {data!r:.80}")
    where, fields, no = name or kind.__name__, dataclasses.fields(kind), dataclasses.MISSING  # type: ignore[arg-type]
    names = [field.name for field in fields]
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise ValueError(f"{where} has no field {', '.join(unknown)}; it may have {', '.join(names)}")
    missing = [field.name for field in fields if field.default is no and field.default_factory is no and field.name not in data]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _value(hints[key], value, f"{name}.{key}" if name else key) for key, value in data.items()})


def _value(annotation: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return value if isinstance(value, annotation) else from_plain(annotation, value, name)
    if typing.get_origin(annotation) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a list, not {value!r:.80}")
        item = typing.get_args(annotation)[0]
        return tuple(_value(item, part, f"{name}.{i}") for i, part in enumerate(value))
    return value


def leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """What nested dicts, lists and tuples hold, with dotted names as in messages; "none" for an empty one."""
    if not isinstance(value, dict | list | tuple):
        return [(name, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for key, part in items for leaf in leaves(part, f"{name}.{key}" if name else str(key))] or [(name, "none")]
