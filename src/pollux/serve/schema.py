"""What a request says about the form of its answer: schemas in the words of the Gemini API become JSON Schema, function declarations
become those of prompts (Model.prompt's `tools`), and all of it together a Constraint of generate/constrain.py.

`responseSchema` and `parameters` are the OpenAPI subset of the API, with upper-case types and `nullable`; `responseJsonSchema` and
`parametersJsonSchema` are JSON Schema already. Errors are ValueErrors that name the place in the schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pollux.generate import constrain
from pollux.generate.constrain import GrammarConstraint
from pollux.generate.model import Model
from pollux.generate.schema_grammar import CONSTRAINTS, REMARKS
from pollux.generate.unique_items import few_values
from pollux.serve.wire.content import Tool, ToolConfig
from pollux.serve.wire.enums import CallingMode
from pollux.serve.wire.generate import GenerateContentRequest

JSON, ENUM, TEXT = "application/json", "text/x.enum", "text/plain"  # responseMimeType
TYPES = ("TYPE_UNSPECIFIED", "STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL")  # by their numbers
NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:\-]{0,127}")
KEYWORDS = CONSTRAINTS | REMARKS
MAX_DEPTH = 64

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_WORDS = ("title", "description", "default", "example", "format", "pattern")
_OTHERS = (
    "type",
    "nullable",
    "enum",
    "anyOf",
    "properties",
    "required",
    "propertyOrdering",
    "items",
    "prefixItems",
    "additionalProperties",
)
_SPELLINGS = {"ref": "$ref", "defs": "$defs", "$ref": "$ref", "$defs": "$defs"}
for _name in (*_COUNTS, *_WORDS, *_OTHERS, "minimum", "maximum"):
    _SPELLINGS[_name] = _SPELLINGS[re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), _name)] = _name


def constraint(
    request: GenerateContentRequest, model: Model, own: Sequence[Mapping[str, Any]] = (), may_call_own: bool = True
) -> GrammarConstraint | None:
    """What the answers of a request must keep to; None if it asks for free text and there are no functions to call.

    own: functions of the server's tools, which the model may call if `may_call_own`; it reads what they return before it goes on.
    """
    config = request.generation_config
    kind = config.response_mime_type or TEXT
    schema: Any = None
    if config.response_json_schema is not None and config.response_schema is not None:
        raise ValueError("generationConfig has both responseSchema and responseJsonSchema; give one of them")
    if config.response_json_schema is not None:
        schema = config.response_json_schema
    elif config.response_schema is not None:
        schema = json_schema(config.response_schema, "responseSchema")
    if kind not in (JSON, ENUM, TEXT):
        raise ValueError(f"responseMimeType is {kind!r:.80} but must be {TEXT}, {JSON} or {ENUM}")
    if kind == TEXT and schema is not None:
        raise ValueError(f"a response schema needs the responseMimeType {JSON} or {ENUM}, not {TEXT}")
    tools, mode, names = callable_functions(request, own)
    if tools and kind != TEXT:
        raise ValueError(f"functions cannot be called in an answer of the responseMimeType {kind}; leave out one of the two")
    if kind == TEXT and not tools:
        return None
    if (words := model.vocabulary) is None:
        raise ValueError("this model folder has no tokenizer.json, so its answers cannot be constrained")
    if tools:
        last = [function["name"] for function in own]
        if own and not may_call_own:
            names = [tool["name"] for tool in tools if tool["name"] not in last and (names is None or tool["name"] in names)]
        return constrain.calls(tools, words, model.config.vocab_size, mode, names, last)
    if kind == ENUM:
        values = schema.get("enum") if isinstance(schema, Mapping) else None
        if not isinstance(values, list):
            raise ValueError(f"the responseMimeType {ENUM} needs a response schema with the enum to choose from")
        return constrain.choice([value for value in values if value is not None], words, model.config.vocab_size)
    return constrain.json_schema(True if schema is None else schema, words, model.config.vocab_size)


def prompt_tools(request: GenerateContentRequest, own: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """The functions that the prompt declares: none of the client's in the mode NONE, as the API has it. own: those of the server."""
    tools, mode, _ = callable_functions(request, own)
    return [] if mode == "NONE" else tools


def callable_functions(
    request: GenerateContentRequest, own: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[dict[str, Any]], str, list[str] | None]:
    """All functions of a request, and how and which of them may be called in the words of `constrain.calls`.

    The modes are about the client's functions: NONE leaves those of the server, ANY demands a call of the client's.
    """
    mode, names = calling(request.tool_config)
    tools = declarations(request.tools)
    if not own:
        return tools, mode, names
    asked, added = [tool["name"] for tool in tools], [function["name"] for function in own]
    if both := sorted(set(asked) & set(added)):
        raise ValueError(f"{both[0]} is a function of a tool that the server runs; give yours another name")
    if mode == "NONE" or not asked:
        return list(map(dict, own)), "AUTO", None
    if mode == "ANY":
        names = names or asked
    elif names is not None:
        names = names + added
    return [*tools, *map(dict, own)], mode, names


def calling(config: ToolConfig | None) -> tuple[str, list[str] | None]:
    """How functions may be called, in the words of `constrain.calls`, and which; None: all that are declared."""
    asked = config.function_calling_config if config is not None else None
    if asked is None:
        return "AUTO", None
    mode = CallingMode.AUTO if asked.mode == CallingMode.MODE_UNSPECIFIED else asked.mode
    names = list(asked.allowed_function_names)
    if names and mode not in (CallingMode.ANY, CallingMode.VALIDATED):
        raise ValueError(f"allowedFunctionNames is for the modes ANY and VALIDATED, not {mode.name}")
    return mode.name, names or None


def declarations(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """All functions of a request as `Model.prompt(tools=...)` and `constrain.calls` take them."""
    made: dict[str, dict[str, Any]] = {}
    for i, tool in enumerate(tools):
        for k, function in enumerate(tool.function_declarations):
            path, name = f"tools[{i}].functionDeclarations[{k}]", function.name
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{path}.name is {name!r:.80} but must begin with a letter or an underscore and go on with letters, digits,"
                    " underscores, dots, colons and dashes, 128 at most"
                )
            if name in made:
                raise ValueError(f"{path}: a function {name} is declared before")
            made[name] = {"name": name} | ({"description": function.description} if function.description else {})
            made[name]["parameters"] = {"type": "object", "properties": {}}
            if function.parameters_json_schema is not None:
                made[name]["parameters"] = _wrapped(function.parameters_json_schema)
            elif function.parameters is not None:
                made[name]["parameters"] = json_schema(function.parameters, f"{path}.parameters")
    return list(made.values())


def not_kept(request: GenerateContentRequest) -> list[str]:
    """Where the schemas of a request say more than a grammar can see to: arrays whose items shall all be different, of endless values."""
    schemas = {"generationConfig.responseJsonSchema": request.generation_config.response_json_schema}
    for i, tool in enumerate(request.tools):
        for k, function in enumerate(tool.function_declarations):
            schemas[f"tools[{i}].functionDeclarations[{k}].parametersJsonSchema"] = function.parameters_json_schema
    return [place for where, schema in schemas.items() for place in _unique(schema, schema, where, 0)]


def _unique(schema: Any, root: Any, where: str, depth: int) -> Iterable[str]:
    if depth > MAX_DEPTH:
        return
    if isinstance(schema, list):
        for i, one in enumerate(schema):
            yield from _unique(one, root, f"{where}[{i}]", depth + 1)
    elif isinstance(schema, Mapping):
        if schema.get("uniqueItems") is True and few_values(schema, root) is None:
            yield f"{where}.uniqueItems"
        for name, one in schema.items():
            yield from _unique(one, root, f"{where}.{name}", depth + 1)


def _wrapped(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The official client writes the properties alone for functions whose arguments only JSON Schema can describe, each with its own
    $defs: then this is the schema of the object that they are of."""
    if not schema or KEYWORDS & set(schema) or not all(isinstance(one, Mapping) for one in schema.values()):
        return schema
    properties = {name: {word: value for word, value in one.items() if word != "$defs"} for name, one in schema.items()}
    defs = {name: one for member in schema.values() for name, one in member.get("$defs", {}).items()}
    required = [name for name, one in schema.items() if "default" not in one]
    return {"type": "object", "properties": properties, "required": required} | ({"$defs": defs} if defs else {})


def json_schema(schema: Any, path: str = "schema") -> dict[str, Any]:
    """A schema of the API, with keywords in either spelling, as JSON Schema. Raises ValueError for what it does not know."""
    return _schema(schema, path, 0)


def _schema(schema: Any, path: str, depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise ValueError(f"{path:.200}: the schema is nested deeper than {MAX_DEPTH} levels")
    if not isinstance(schema, Mapping):
        raise ValueError(f"{path} must be a schema, not {schema!r:.80}")
    asked: dict[str, Any] = {}
    for spelled, value in schema.items():
        if spelled not in _SPELLINGS:
            raise ValueError(f"{path} has no field {spelled!r:.80}; it may have {', '.join(sorted(set(_SPELLINGS.values())))}")
        if value is not None:
            asked[_SPELLINGS[spelled]] = value

    def inner(value: Any, where: str) -> dict[str, Any]:
        return _schema(value, f"{path}.{where}", depth + 1)

    made = {keyword: asked[keyword] for keyword in _WORDS if keyword in asked}
    made |= {keyword: _number(asked[keyword], True, f"{path}.{keyword}") for keyword in _COUNTS if keyword in asked}
    made |= {keyword: _number(asked[keyword], False, f"{path}.{keyword}") for keyword in ("minimum", "maximum") if keyword in asked}
    kind = _type(asked.get("type", 0), f"{path}.type")
    if kind and "anyOf" not in asked:  # beside anyOf clients write OBJECT whatever the alternatives are
        made["type"] = kind
    if "enum" in asked:
        made["enum"] = _enum(asked["enum"], kind, f"{path}.enum")
    for keyword in ("properties", "$defs"):
        if keyword in asked:
            members = _of_type(asked[keyword], Mapping, "an object of schemas", f"{path}.{keyword}")
            made[keyword] = {name: inner(member, f"{keyword}.{name}") for name, member in members.items()}
    for keyword in ("required", "propertyOrdering"):
        if keyword in asked:
            made[keyword] = _of_type(asked[keyword], list, "a list of names", f"{path}.{keyword}")
            for name in made[keyword]:
                if name not in made.get("properties", {}):
                    raise ValueError(f"{path}.{keyword} names {name!r:.80}, which is not among the properties")
    for keyword in ("anyOf", "prefixItems"):
        if keyword in asked:
            parts = _of_type(asked[keyword], list, "a list of schemas", f"{path}.{keyword}")
            made[keyword] = [inner(part, f"{keyword}[{i}]") for i, part in enumerate(parts)]
    for keyword in ("items", "additionalProperties"):
        if keyword in asked:
            value = asked[keyword]
            made[keyword] = value if keyword == "additionalProperties" and isinstance(value, bool) else inner(value, keyword)
    if "$ref" in asked:
        made["$ref"] = re.sub("^#/defs/", "#/$defs/", _of_type(asked["$ref"], str, "a string", f"{path}.$ref"))
    if _of_type(asked.get("nullable", False), bool, "true or false", f"{path}.nullable"):
        made["nullable"] = True  # the one word of OpenAPI that stays, because chat templates and the grammar know it
    return made


def _type(value: Any, path: str) -> str:
    """The name in JSON Schema, "" for none."""
    if isinstance(value, str) and value.upper() in TYPES:
        value = TYPES.index(value.upper())
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(TYPES):
        raise ValueError(f"{path} must be one of {', '.join(TYPES[1:])}, not {value!r:.80}")
    return TYPES[value].lower() if value else ""


def _enum(values: Any, kind: str, path: str) -> list[Any]:
    """The API has strings here, also for numbers."""
    if not isinstance(values, list) or not values:
        raise ValueError(f"{path} must be a list of at least one value, not {values!r:.80}")
    if kind not in ("number", "integer"):
        return values
    return [_number(value, kind == "integer", f"{path}[{i}]") for i, value in enumerate(values)]


def _number(value: Any, whole: bool, path: str) -> int | float:
    """Numbers may be written as strings, whole ones with a point."""
    try:
        number = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int if whole else int | float):
        raise ValueError(f"{path} must be a {'whole ' * whole}number, not {value!r:.80}")
    return number


def _of_type(value: Any, kind: Any, words: str, path: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{path} must be {words}, not {value!r:.80}")
    return value
