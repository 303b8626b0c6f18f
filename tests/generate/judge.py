"""A second reader of JSON Schema, written straight from its words, and strategies that make schemas and documents of them."""

import datetime
import json
import math
import re

from hypothesis import strategies as st

KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
FORMATS = {
    "date": datetime.date.fromisoformat,
    "date-time": datetime.datetime.fromisoformat,
    "time": lambda text: datetime.time.fromisoformat(text) is not None,
    "uuid": re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch,
}


def is_valid(value, schema, root=None):
    """Does a value of json.loads meet a schema? oneOf is anyOf here, as in the Gemini API."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    checks = [
        is_of_type(value, schema.get("type", [])),
        "enum" not in schema or any(same(value, one) for one in schema["enum"]),
        "const" not in schema or same(value, schema["const"]),
        all(is_valid(value, part, root) for part in schema.get("allOf", [])),
        "anyOf" not in schema or any(is_valid(value, part, root) for part in schema["anyOf"]),
        "oneOf" not in schema or any(is_valid(value, part, root) for part in schema["oneOf"]),
        "$ref" not in schema or is_valid(value, pointed(root, schema["$ref"]), root),
    ]
    if isinstance(value, str):
        checks += [len(value) >= schema.get("minLength", 0), len(value) <= schema.get("maxLength", math.inf)]
        checks.append(re.search(schema.get("pattern", "").replace("$", r"\Z"), value, re.ASCII) is not None)
        checks.append(is_of_format(value, schema.get("format")))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        checks += [math.isfinite(value), value >= schema.get("minimum", -math.inf), value <= schema.get("maximum", math.inf)]
        checks += [value > schema.get("exclusiveMinimum", -math.inf), value < schema.get("exclusiveMaximum", math.inf)]
    elif isinstance(value, list):
        first, others = schema.get("prefixItems", []), schema.get("items", True)
        checks += [len(value) >= schema.get("minItems", 0), len(value) <= schema.get("maxItems", math.inf)]
        checks += [is_valid(one, first[i] if i < len(first) else others, root) for i, one in enumerate(value)]
    elif isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        checks += [len(value) >= schema.get("minProperties", 0), len(value) <= schema.get("maxProperties", math.inf)]
        checks += [name in value for name in schema.get("required", [])]
        checks += [is_valid(one, properties.get(name, others), root) for name, one in value.items()]
    return all(checks)


def is_of_type(value, types):
    types = [types] if isinstance(types, str) else types
    if isinstance(value, bool) or not isinstance(value, int | float):
        return not types or any(isinstance(value, KINDS.get(name, ())) for name in types)
    return not types or "number" in types or "integer" in types and value == int(value)


def is_of_format(text, name):
    try:
        return name not in FORMATS or bool(FORMATS[name](text))
    except ValueError:
        return False


def same(one, two):
    return json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)


def pointed(root, reference):
    for step in reference.split("/")[1:]:
        root = root[step]
    return root


names = st.sampled_from(["a", "b", "name", "first name", "größe", "x:y", 'a"b', "👍", "", "back\\slash"])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e9, 1e9, width=32) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def strings(draw):
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return {"type": "string"}
    if kind == 1:
        least = draw(st.integers(0, 4))
        return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 5))}
    if kind == 2:
        return {"type": "string", "format": draw(st.sampled_from([*FORMATS, "unknown"]))}
    if kind == 3:
        return {"type": "string", "pattern": draw(st.sampled_from([r"^[a-c]+\d?$", r"\d\d", "^x|y$", "a/b", r'"', "^$|é+"]))}
    return {"type": "string", "enum": draw(st.lists(texts, min_size=1, max_size=3))}


@st.composite
def numbers(draw):
    schema = {"type": draw(st.sampled_from(["integer", "number"]))}
    low = draw(st.integers(-300, 300) | st.decimals(-50, 50, places=2).map(float))
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = low + draw(st.integers(2, 1000))
    return schema


@st.composite
def objects(draw, inner):
    properties = draw(st.dictionaries(names, inner, max_size=4))
    schema = {"type": "object", "properties": properties}
    if properties:
        schema["required"] = draw(st.lists(st.sampled_from(list(properties)), unique=True))
    kind = draw(st.integers(0, 4))
    if kind == 0:
        schema["additionalProperties"] = draw(inner)
        schema["maxProperties"] = len(properties) + draw(st.integers(0, 2))
    if kind == 1:
        schema["minProperties"] = draw(st.integers(0, len(properties)))
    return schema


@st.composite
def arrays(draw, inner):
    least = draw(st.integers(0, 2))
    schema = {"type": "array", "items": draw(inner), "minItems": least, "maxItems": least + draw(st.integers(0, 2))}
    if draw(st.integers(0, 3)) == 0:
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
    return schema


leaves = strings() | numbers() | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"], "maxLength": 3}])
leaves |= st.lists(values, min_size=1, max_size=3).map(lambda some: {"enum": some}) | values.map(lambda one: {"const": one})
schemas = st.recursive(
    leaves,
    lambda inner: objects(inner) | arrays(inner) | st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some}),
    max_leaves=6,
)


def documents(schema):
    """Values that a schema of `schemas` admits, with the declared properties in their order and no others but additional ones."""
    if "anyOf" in schema:
        return st.one_of(map(documents, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema["type"]
    if kind == "object":
        return members(schema)
    if kind == "array":
        return items(schema)
    if kind == "boolean":
        return st.booleans()
    if kind == "null":
        return st.none()
    if kind in ("integer", "number"):
        return amounts(schema)
    made = texts if kind == "string" else texts | st.none()
    if schema.get("format") in FORMATS:
        made = {
            "date": st.dates(datetime.date(1000, 1, 1)).map(str),
            "time": st.times().map(lambda time: f"{time.isoformat()}Z"),
            "date-time": st.datetimes(datetime.datetime(1000, 1, 1)).map(lambda time: f"{time.isoformat()}+01:00"),
            "uuid": st.uuids().map(str),
        }[schema["format"]]
    elif "pattern" in schema:
        made = st.from_regex(schema["pattern"].replace("$", r"\Z"), alphabet=st.characters(exclude_categories=["Cs", "Cc"]))
    return made.filter(lambda text: is_valid(text, schema))


def amounts(schema):
    low = schema.get("minimum", schema.get("exclusiveMinimum", schema.get("maximum", schema.get("exclusiveMaximum", 0)) - 1000))
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 1000))
    if schema["type"] == "integer":
        made = st.integers(math.ceil(low), math.floor(high))
    else:
        made = st.decimals(math.floor(low), math.ceil(high), places=3).map(float)
    return made.filter(lambda number: is_valid(number, schema))


@st.composite
def members(draw, schema):
    required, made = schema.get("required", []), {}
    least = schema.get("minProperties", 0)
    for name, inner in schema["properties"].items():
        if name in required or least or draw(st.booleans()):
            made[name] = draw(documents(inner))
    room = schema.get("maxProperties", 0) - len(made)
    if room > 0 and "additionalProperties" in schema:
        others = st.text("uvw", min_size=1, max_size=3)
        made |= draw(st.dictionaries(others, documents(schema["additionalProperties"]), max_size=room))
    return made


@st.composite
def items(draw, schema):
    first = schema.get("prefixItems", [])
    length = draw(st.integers(schema["minItems"], schema["maxItems"]))
    return [draw(documents(first[i] if i < len(first) else schema["items"])) for i in range(length)]
