"""JSON Schema -> a grammar in llguidance's Lark that writes only what the schema admits, spelled as one of value_forms.py.

llguidance reads JSON Schema itself, but in JSON only, with numbers and whitespace that need not end and without a look at whether a
recursive schema can end at all. Here every rule that can be entered can also be left: what could only go on for ever is taken out.
What is written is a part of what the schema admits: objects have the declared properties in their order, and others only where
`additionalProperties` says so; oneOf is read as anyOf. `uniqueItems` is kept where the items are one of a few values and beyond the
means of a grammar elsewhere. `nullable` is that of OpenAPI.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher

from pollux.generate.members import members
from pollux.generate.number_patterns import number
from pollux.generate.rules import Rules, Symbol, repeated
from pollux.generate.unique_items import each_once, few_values, pointed
from pollux.generate.value_forms import Form, expression, literal

Schema = Mapping[str, Any]

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
FACETS = {  # of each type; a schema without a type has the types of its facets
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties", "propertyOrdering"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
REMARKS = {
    *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"),
    *("$schema", "$id", "$comment", "$anchor", "$defs", "definitions"),
}
CONSTRAINTS = {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "nullable"}.union(*FACETS.values())
MAX_DEPTH, MAX_COUNT = 64, 1 << 24
_INT32 = {"minimum": -(2**31), "maximum": 2**31 - 1}


class Values:
    """`rule(schema, path)` is the rule of the values of a schema; errors call the schema `path`."""

    def __init__(self, rules: Rules, form: Form):
        self.rules, self.form = rules, form
        self._root: Any = None  # what references point into
        self._root_path = ""
        self._references: dict[str, str] = {}  # their rules by path
        self._any = ""
        self._waiting: list[tuple[str, Any, str]] = []  # rules of references, with schema and path

    def rule(self, schema: Any, path: str) -> str:
        """Raises ValueError that names the place in the schema which cannot be followed."""
        self._root, self._root_path, self._references = schema, path, {}
        rule = self._value(schema, path, 0)
        while self._waiting:
            name, target, where = self._waiting.pop()
            self.rules.define(name, [[self._value(target, where, 0)]])
        self.rules.require_an_end(rule)
        return rule

    def _value(self, schema: Any, path: str, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise ValueError(f"{path:.200}: the schema is nested deeper than {MAX_DEPTH} levels")
        if isinstance(schema, bool):
            return self._anything() if schema else self.rules.rule([], path)
        if not isinstance(schema, Mapping):
            raise ValueError(f"{path} must be a schema, not {schema!r:.80}")
        for keyword in schema:
            if keyword not in CONSTRAINTS and keyword not in REMARKS and schema[keyword] is not False:
                raise ValueError(f"{path}: the keyword {keyword!r} is not supported; supported are {', '.join(sorted(CONSTRAINTS))}")
        schema = {keyword: value for keyword, value in schema.items() if keyword in CONSTRAINTS}
        if not schema:
            return self._anything()
        if "nullable" in schema:
            alone = self._value(_without(schema, "nullable"), path, depth + 1)
            return self.rules.rule([[alone], ['"null"']], path) if schema["nullable"] else alone
        if set(schema) == {"$ref"}:
            return self._reference(schema["$ref"], path)
        if "$ref" in schema:
            target = self._resolved(schema["$ref"], path)
            return self._value(_merged(_without(schema, "$ref"), target, f"{path}.$ref"), path, depth + 1)
        if "allOf" in schema:
            whole = _without(schema, "allOf")
            for i, part in enumerate(_schemas(schema["allOf"], f"{path}.allOf")):
                where = f"{path}.allOf[{i}]"
                if isinstance(part, Mapping) and "$ref" in part:
                    part = _merged(_without(part, "$ref"), self._resolved(part["$ref"], where), where)
                whole = _merged(whole, part, where)
            return self._value(whole, path, depth + 1)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                rest, parts = _without(schema, keyword), _schemas(schema[keyword], f"{path}.{keyword}")
                paths = [f"{path}.{keyword}[{i}]" for i in range(len(parts))]
                merged = [_merged(rest, part, where) if rest else part for part, where in zip(parts, paths, strict=True)]
                return self.rules.rule([[self._value(part, where, depth + 1)] for part, where in zip(merged, paths, strict=True)], path)
        return self._typed(schema, path, depth)

    def _anything(self) -> str:
        """The rule of all values, which is one because they hold each other."""
        if not self._any:
            self._any = self.rules.rule([])
            self.rules.define(self._any, [[self._typed({}, "any value", 0)]])
        return self._any

    def _reference(self, reference: Any, path: str) -> str:
        target, where = self._resolved(reference, path), f"{self._root_path}{reference[1:].replace('/', '.')}"
        if where not in self._references:
            self._references[where] = self.rules.rule([], where)
            self._waiting.append((self._references[where], target, where))
        return self._references[where]

    def _resolved(self, reference: Any, path: str) -> Any:
        """What a JSON pointer such as "#/$defs/name" points to."""
        return pointed(self._root, reference, path)

    def _typed(self, schema: Schema, path: str, depth: int) -> str:
        types = _types(schema, path)
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            if not isinstance(values, list) or not values:
                raise ValueError(f"{path}.enum must be a list of at least one value, not {values!r:.80}")
            chosen = [value for value in values if any(_is_of(value, name) for name in types)]
            if "const" in schema and "enum" in schema:
                chosen = [value for value in chosen if value in schema["enum"]]
            if not chosen:
                raise ValueError(f"{path}: none of the values of enum is of the type {' or '.join(types)}")
            return self._choice(chosen, path)
        alternatives = [one for name in types if (one := self._of_type(name, schema, path, depth)) is not None]
        if not alternatives:
            raise ValueError(f"{path}: no value lies between the bounds that are given")
        return self.rules.rule(alternatives, path)

    def _of_type(self, name: str, schema: Schema, path: str, depth: int) -> list[Symbol] | None:
        """None if no value of the type meets the bounds."""
        if name == "object":
            return self._object(schema, path, depth)
        if name == "array":
            return self._array(schema, path, depth)
        if name == "string":
            return self._string(schema, path)
        if name == "boolean":
            return [self.rules.rule([['"true"'], ['"false"']])]
        if name == "null":
            return ['"null"']
        return self._number(name == "integer", schema, path)

    def _number(self, integer: bool, schema: Schema, path: str) -> list[Symbol] | None:
        bounds = {keyword: schema[keyword] for keyword in FACETS["number"] if keyword in schema}
        for keyword, bound in bounds.items():
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not abs(bound) < 1e300:
                raise ValueError(f"{path}.{keyword} must be a number, not {bound!r:.80}")
        lows, highs = _bounds(bounds, "inimum"), _bounds(bounds, "aximum")
        if integer and schema.get("format") == "int32":
            lows, highs = [*lows, (_INT32["minimum"], False)], [*highs, (_INT32["maximum"], False)]
        low, low_open = max(lows, default=(None, False))
        high, high_open = min(highs, key=lambda bound: (bound[0], not bound[1]), default=(None, False))
        try:
            made = number(integer, low, high, low_open, high_open)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return None if made is None else [self.rules.terminal(made)]

    def _string(self, schema: Schema, path: str) -> list[Symbol] | None:
        facets = {keyword: schema[keyword] for keyword in FACETS["string"] if keyword in schema}
        for keyword in ("pattern", "format"):
            if keyword in facets and not isinstance(facets[keyword], str):
                raise ValueError(f"{path}.{keyword} must be a string, not {facets[keyword]!r:.80}")
        least, most = _count(facets, "minLength", path) or 0, _count(facets, "maxLength", path)
        if most is not None and least > most:
            return None
        facets |= {"minLength": least} if least else {}
        facets |= {"maxLength": most} if most is not None else {}
        if "pattern" in facets:
            try:
                problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(f"start: T\nT: /{expression(facets['pattern'])}/"))
            except ValueError as error:
                problem = str(error)
            if problem:
                raise ValueError(f"{path}.pattern {facets['pattern']!r:.80} cannot be followed: {reason(problem)}")
        return [*self.form.string(facets, self.rules.terminal)]

    def _array(self, schema: Schema, path: str, depth: int) -> list[Symbol] | None:
        least, most = _count(schema, "minItems", path) or 0, _count(schema, "maxItems", path)
        first = _schemas(schema["prefixItems"], f"{path}.prefixItems") if "prefixItems" in schema else []
        others = schema.get("items", not first)
        if others is False:
            most = len(first) if most is None else min(most, len(first))
        if most is not None and least > most:
            return None
        if schema.get("uniqueItems") is True and (values := few_values(schema, self._root)) is not None:
            choices = [self._choice([value], f"{path}.items") for value in values]
            if least > len(values):
                return None
            return [self.form.open_array, each_once(self.rules, choices, self.form.comma, least, most), self.form.close_array]
        comma, n = self.form.comma, len(first) if most is None else min(len(first), most)
        rest: list[list[Symbol]] = [[]]  # after n items
        if most is None or most > n:
            item = self._value(others, f"{path}.items", depth + 1)
            low, high = max(least - n, 0), None if most is None else most - n
            more = self.rules.rule([[comma, item]])
            rest = [repeated(more, low, high)] if n else [] if low else [[]]
            if not n:
                rest.append([item, *repeated(more, max(low - 1, 0), None if high is None else high - 1)])
        following = self.rules.rule(rest)
        for i in reversed(range(n)):
            item = self._value(first[i], f"{path}.prefixItems[{i}]", depth + 1)
            written: list[Symbol] = [*([comma] if i else []), item, following]
            following = self.rules.rule([written, *([[]] if i >= least else [])])
        return [self.form.open_array, following, self.form.close_array]

    def _object(self, schema: Schema, path: str, depth: int) -> list[Symbol] | None:
        properties, required = schema.get("properties", {}), _list_of_names(schema, "required", path)
        others = schema.get("additionalProperties", "properties" not in schema)
        if not isinstance(properties, Mapping):
            raise ValueError(f"{path}.properties must be an object of schemas, not {properties!r:.80}")
        order = _list_of_names(schema, "propertyOrdering", path)
        properties = {name: properties[name] for name in order if name in properties} | dict(properties)
        for name in required:
            if name not in properties and others is False:
                raise ValueError(f"{path}.required names {name!r}, which is not among the properties")
            properties.setdefault(name, others)
        least, most = _count(schema, "minProperties", path) or 0, _count(schema, "maxProperties", path)
        if most is not None and max(least, len(set(required))) > most:
            return None
        declared = []
        for name in self.form.ordered(properties):
            try:
                key = self.form.key(name)
            except ValueError as error:
                raise ValueError(f"{path}.properties: {error}") from error
            value = self._value(properties[name], f"{path}.properties.{name}", depth + 1)
            declared.append((self.rules.rule([[*key, value]]), name in required))
        other = None
        if others is not False:
            value = self._value(others, f"{path}.additionalProperties", depth + 1)
            other = self.rules.rule([[*self.form.other_key(properties, self.rules.terminal), value]])
        try:
            rule = members(self.rules, declared, other, self.form.comma, least, most)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return [self.form.open_object, rule, self.form.close_object]

    def _choice(self, values: list[Any], path: str) -> str:
        try:
            strings = [value for value in values if isinstance(value, str)]
            alternatives = [self._constant(value) for value in values if not isinstance(value, str)]
            if strings:
                alternatives.append([*self.form.choice(strings, self.rules.terminal)])
        except ValueError as error:
            raise ValueError(f"{path}.enum: {error}") from error
        return self.rules.rule(alternatives, path)

    def _constant(self, value: Any) -> list[Symbol]:
        if isinstance(value, str):
            return [*self.form.choice([value], self.rules.terminal)]
        if isinstance(value, Mapping):
            pairs = [[*self.form.key(name), *self._constant(value[name])] for name in self.form.ordered(value)]
            return [self.form.open_object, *_joined(pairs, self.form.comma), self.form.close_object]
        if isinstance(value, list):
            return [self.form.open_array, *_joined([self._constant(one) for one in value], self.form.comma), self.form.close_array]
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is not a number of JSON")
        return [literal(json.dumps(value))]


def _joined(parts: list[list[Symbol]], comma: str) -> list[Symbol]:
    return [symbol for i, part in enumerate(parts) for symbol in ([comma] if i else []) + part]


def _types(schema: Schema, path: str) -> list[str]:
    implied = [name for name, keywords in FACETS.items() if any(keyword in schema for keyword in keywords)]
    given = schema.get("type", implied or [name for name in TYPES if name != "integer"])
    types = [given] if isinstance(given, str) else given
    if not isinstance(types, list) or not types or any(name not in TYPES for name in types):
        raise ValueError(f"{path}.type must be one or several of {', '.join(TYPES)}, not {given!r:.80}")
    return list(dict.fromkeys(types))


def _is_of(value: Any, name: str) -> bool:
    kinds = {"object": Mapping, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if name in kinds:
        return isinstance(value, kinds[name])
    if isinstance(value, float):
        return name == "number" or value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def _merged(schema: Schema, other: Any, path: str) -> Schema:
    """One schema for what both admit. Raises ValueError where that takes more than putting them side by side."""
    if other is True:
        return schema
    if not isinstance(other, Mapping):
        raise ValueError(f"{path} must be a schema, not {other!r:.80}")
    made = dict(schema)
    for keyword, value in other.items():
        if keyword in REMARKS or keyword not in made or made[keyword] == value:
            made[keyword] = value
        elif keyword == "required":
            made[keyword] = [*made[keyword], *value]
        elif keyword == "type":
            made[keyword] = [name for name in _types(other, path) if name in _types(schema, path)]
        else:
            raise ValueError(f"{path}: {keyword!r} stands here and in the schema around it; write the two as one")
    for one, two in ((schema, other), (other, schema)):
        if "additionalProperties" in one and "properties" in two and "properties" not in one:
            raise ValueError(f"{path}: 'additionalProperties' and 'properties' must stand in one schema")
    return made


def _without(schema: Schema, keyword: str) -> Schema:
    return {name: value for name, value in schema.items() if name != keyword}


def _schemas(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{path} must be a list of at least one schema, not {value!r:.80}")
    return value


def _list_of_names(schema: Schema, keyword: str, path: str) -> list[str]:
    names = schema.get(keyword, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}.{keyword} must be a list of names, not {names!r:.80}")
    return names


def _count(schema: Schema, keyword: str, path: str) -> int | None:
    value = schema.get(keyword)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != value // 1:
        raise ValueError(f"{path}.{keyword} must be a whole number of at least 0, not {value!r:.80}")
    if value <= MAX_COUNT:
        return int(value)
    if keyword.startswith("min"):
        raise ValueError(f"{path}.{keyword} is {value:.15g}, more than any answer has")
    return None


def _bounds(bounds: Mapping[str, float], ending: str) -> list[tuple[float, bool]]:
    """Values of the bounds "m..." and "exclusiveM..."; are they outside of what they bound?"""
    return [(value, keyword.startswith("e")) for keyword, value in bounds.items() if keyword.endswith(ending)]


def reason(problem: str) -> str:
    """What is wrong, from several lines of llguidance."""
    lines = [line.strip() for line in problem.splitlines()]
    found = next((line[7:] for line in lines if line.startswith("error: ")), lines[0])
    return re.sub(r"^at \d+\(\d+\): ", "", found)
