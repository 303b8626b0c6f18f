"""Arrays whose items must all be different: a grammar can see to that where the items are one of a few values, and nowhere else.

Beside it what both it and schema_grammar.py need, to find what a reference inside a schema means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pollux.generate.rules import Rules, Symbol

KINDS: dict[Any, Any] = {None: object, "string": str, "integer": int, "number": int | float}
MOST = 6  # values: there is a rule for every set of those that were used


def few_values(schema: Mapping[str, Any], root: Any) -> list[Any] | None:
    """The values of which the items of an array's schema are, each once; None if they are of another kind, or too many."""
    items = schema.get("items")
    if isinstance(items, Mapping) and isinstance(items.get("$ref"), str):
        items = pointed(root, items["$ref"], "items")
    if not isinstance(items, Mapping) or "prefixItems" in schema or not set(items) <= {"enum", "type", "title", "description"}:
        return None
    values = items.get("enum")
    if (
        not isinstance(values, list)
        or items.get("type") not in KINDS
        or not all(isinstance(value, KINDS[items.get("type")]) for value in values)
    ):
        return None
    distinct = {json.dumps(value, sort_keys=True): value for value in values}
    return list(distinct.values()) if 0 < len(distinct) <= MOST else None


def each_once(rules: Rules, values: Sequence[Symbol], comma: Symbol, least: int, most: int | None) -> Symbol:
    """The rule of what stands between the brackets. values: a rule for each of them, at least `least`."""
    made: dict[frozenset[int], Symbol] = {}  # what may follow when these were written

    def following(used: frozenset[int]) -> Symbol:
        if used not in made:
            more: list[list[Symbol]] = [[]] if len(used) >= least else []
            if most is None or len(used) < most:
                more += [[*([comma] if used else []), value, following(used | {i})] for i, value in enumerate(values) if i not in used]
            made[used] = rules.rule(more)
        return made[used]

    return following(frozenset())


def pointed(root: Any, reference: Any, path: str) -> Any:
    """What a JSON pointer such as "#/$defs/name" points to. Raises ValueError for one that leads nowhere."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise ValueError(f"{path}.$ref is {reference!r:.80} but must point into the same schema, such as '#/$defs/name'")
    found = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        elif isinstance(found, Mapping) and step in found:
            found = found[step]
        else:
            raise ValueError(f"{path}.$ref: there is nothing at {reference!r:.80}")
    return found
