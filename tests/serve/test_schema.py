"""Schemas of the API become JSON Schema, declarations tools of prompts, and both together the constraint on an answer."""

import enum
import json
import typing

import numpy as np
import pydantic
import pytest
from google import genai
from google.genai import _transformers, types
from small_model import small_model

from pollux.content import FunctionCall
from pollux.serve.schema import TYPES, calling, constraint, declarations, json_schema, not_kept, prompt_tools
from pollux.serve.wire.generate import GenerateContentRequest
from pollux.serve.wire.message import parse
from pollux.tokens.interleave import decode_parts


def asked(**body):
    request, _ = parse(GenerateContentRequest, body)
    return request


def declared(*functions):
    return [{"functionDeclarations": list(functions)}]


def answers(request, seeds=range(12), steps=400):
    """What a random model writes under the constraint of a request, as far as it comes to an end: ids without the one that ends them."""
    model, made = small_model(), []
    start = constraint(request, model)
    for seed in seeds:
        rng, place, ids = np.random.default_rng(seed), start.fresh(), []
        for _ in range(steps):
            ids.append(int(rng.choice(np.flatnonzero(place.allowed()))))
            place.accept(ids[-1])
            if ids[-1] in model.vocabulary.stops:
                made.append(ids[:-1])
                break
    return made


def texts(request, **how):
    return [small_model().vocabulary.decode(ids) for ids in answers(request, **how)]


@pytest.mark.parametrize("number", range(1, 8))
def test_types_are_named_or_numbered(number):
    name = TYPES[number]
    for kind in (name, name.lower(), number):
        assert json_schema({"type": kind}) == {"type": name.lower()}


def test_both_spellings_and_numbers_as_strings_are_read():
    camel = {"type": "ARRAY", "minItems": "1", "maxItems": 3.0, "items": {"anyOf": [{"type": 3, "minimum": "0.5"}, {"type": "STRING"}]}}
    snake = {"type": "ARRAY", "min_items": 1, "max_items": 3, "items": {"any_of": [{"type": "INTEGER", "minimum": 0.5}, {"type": 1}]}}
    assert json_schema(camel) == json_schema(snake)
    assert json_schema(camel)["items"] == {"anyOf": [{"type": "integer", "minimum": 0.5}, {"type": "string"}]}


def test_every_field_has_its_place():
    schema = {
        "type": "OBJECT",
        "title": "T",
        "description": "D",
        "properties": {
            "name": {
                "type": "STRING",
                "minLength": 1,
                "maxLength": 9,
                "pattern": "^a",
                "format": "enum",
                "nullable": True,
                "example": "ab",
            },
            "pair": {"type": "ARRAY", "prefixItems": [{"type": "NUMBER", "maximum": 2}, {"type": "NULL"}]},
            "count": {"type": "INTEGER", "enum": ["1", "20"], "default": 1},
            "more": {"type": "OBJECT", "additionalProperties": {"type": "BOOLEAN"}, "minProperties": "1", "maxProperties": "2"},
            "self": {"ref": "#/defs/kind"},
        },
        "required": ["name"],
        "property_ordering": ["pair", "name"],
        "defs": {"kind": {"type": "STRING", "enum": ["x y"]}},
    }
    made = json_schema(schema)
    assert made["properties"]["name"] == {
        "type": "string", "minLength": 1, "maxLength": 9, "pattern": "^a", "format": "enum", "nullable": True, "example": "ab",
    }  # fmt: skip
    assert made["properties"]["pair"]["prefixItems"] == [{"type": "number", "maximum": 2}, {"type": "null"}]
    assert made["properties"]["count"] == {"type": "integer", "enum": [1, 20], "default": 1}
    assert made["properties"]["more"] == {
        "type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 2,
    }  # fmt: skip
    assert made["properties"]["self"] == {"$ref": "#/$defs/kind"} and made["$defs"] == {"kind": {"type": "string", "enum": ["x y"]}}
    assert made["required"] == ["name"] and made["propertyOrdering"] == ["pair", "name"]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("STRING", "s must be a schema, not 'STRING'"),
        ({"type": "TEXT"}, "s.type must be one of STRING, NUMBER"),
        ({"type": 8}, "s.type must be one of"),
        ({"type": True}, "s.type must be one of"),
        ({"properties": {"a": {"items": {"multipleOf": 2}}}}, "s.properties.a.items has no field 'multipleOf'; it may have .*anyOf"),
        ({"properties": []}, "s.properties must be an object of schemas"),
        ({"anyOf": {"type": "STRING"}}, "s.anyOf must be a list of schemas"),
        ({"anyOf": [{}, {"type": "NO"}]}, r"s.anyOf\[1\].type must be"),
        ({"type": "OBJECT", "required": ["a"]}, "s.required names 'a', which is not among the properties"),
        ({"properties": {"b": {}}, "propertyOrdering": ["a"]}, "s.propertyOrdering names 'a'"),
        ({"minItems": "many"}, "s.minItems must be a whole number, not 'many'"),
        ({"minItems": 1.5}, "s.minItems must be a whole number"),
        ({"maximum": True}, "s.maximum must be a number"),
        ({"nullable": "yes"}, "s.nullable must be true or false"),
        ({"type": "STRING", "enum": []}, "s.enum must be a list of at least one value"),
        ({"type": "INTEGER", "enum": ["one"]}, r"s.enum\[0\] must be a whole number, not 'one'"),
        ({"$ref": 3}, r"s.\$ref must be a string"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(schema, message):
    with pytest.raises(ValueError, match=message):
        json_schema(schema, "s")


def test_a_schema_nested_without_end_is_refused():
    deep = {"type": "STRING"}
    for _ in range(200):
        deep = {"type": "ARRAY", "items": deep}
    with pytest.raises(ValueError, match="nested deeper than 64"):
        json_schema(deep)


class Colour(enum.Enum):
    RED = "red"
    LIGHT = "light blue"


class Star(pydantic.BaseModel):
    colour: Colour
    size: int = pydantic.Field(ge=0, le=9)
    name: str | None = pydantic.Field(default=None, max_length=3)
    kind: typing.Literal["big", "small"] = "big"


class Sky(pydantic.BaseModel):
    stars: list[Star] = pydantic.Field(max_length=2)
    cloud: int | bool


@pytest.mark.parametrize("form", ["responseSchema", "responseJsonSchema"])
def test_pydantic_models_of_the_official_client_are_followed(form):
    schema = Sky.model_json_schema()
    if form == "responseSchema":
        schema = _transformers.t_schema(genai.Client(api_key="none")._api_client, Sky).model_dump(mode="json", exclude_none=True)
    made = texts(asked(generationConfig={"responseMimeType": "application/json", form: schema}), seeds=range(40))
    assert made
    for text in made:
        Sky.model_validate_json(text)


def test_functions_of_the_official_client_are_declared_and_called():
    def weather(city: str, days: int = 3, units: typing.Literal["c", "f"] = "c") -> str:
        """What the sky does."""
        return city + units + str(days)

    made = types.FunctionDeclaration.from_callable(client=genai.Client(api_key="none")._api_client, callable=weather)
    tools = declared(made.model_dump(mode="json", exclude_none=True, by_alias=True))
    request = asked(tools=tools, toolConfig={"functionCallingConfig": {"mode": "ANY"}})
    tool = prompt_tools(request)[0]
    assert (tool["name"], tool["description"]) == ("weather", "What the sky does.")
    assert tool["parameters"]["properties"]["days"]["type"] == "integer" and tool["parameters"]["required"] == ["city"]
    called = [part for ids in answers(request, seeds=range(60), steps=900) for part in decode_parts(ids, small_model().vocabulary)]
    assert called and all(isinstance(call, FunctionCall) and call.name == "weather" for call in called)
    assert all(isinstance(call.args["city"], str) and call.args.get("units", "c") in ("c", "f") for call in called)


def test_any_json_is_asked_for_by_its_mime_type_alone():
    for text in texts(asked(generationConfig={"responseMimeType": "application/json"})):
        json.loads(text)


@pytest.mark.parametrize("form", ["responseSchema", "responseJsonSchema"])
def test_an_enum_is_bare_text(form):
    schema = {"type": "STRING" if form == "responseSchema" else "string", "enum": ["red", "light blue"]}
    assert set(texts(asked(generationConfig={"responseMimeType": "text/x.enum", form: schema}))) == {"red", "light blue"}


@pytest.mark.parametrize("body", [{}, {"generationConfig": {"responseMimeType": "text/plain"}}, {"tools": [{}]}])
def test_free_text_has_no_constraint(body):
    assert constraint(asked(**body), small_model()) is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"generationConfig": {"responseMimeType": "text/html"}}, "responseMimeType is 'text/html' but must be text/plain"),
        ({"generationConfig": {"responseSchema": {"type": "STRING"}}}, "needs the responseMimeType application/json or text/x.enum"),
        (
            {"generationConfig": {"responseMimeType": "application/json", "responseSchema": {}, "responseJsonSchema": {}}},
            "both responseSchema and responseJsonSchema",
        ),
        ({"generationConfig": {"responseMimeType": "text/x.enum"}}, "needs a response schema with the enum"),
        (
            {"generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": {"not": {}}}},
            "schema: the keyword 'not' is not supported",
        ),
        (
            {"generationConfig": {"responseMimeType": "application/json"}, "tools": declared({"name": "f"})},
            "functions cannot be called in an answer of the responseMimeType application/json",
        ),
        ({"tools": declared({"name": "1f"})}, r"tools\[0\].functionDeclarations\[0\].name is '1f' but must begin with a letter"),
        ({"tools": declared({"name": "f"}, {"name": "f"})}, r"functionDeclarations\[1\]: a function f is declared before"),
        (
            {"tools": declared({"name": "f", "parameters": {"type": "OBJECT", "properties": {"a": {"type": "X"}}}})},
            r"tools\[0\].functionDeclarations\[0\].parameters.properties.a.type must be one of",
        ),
        (
            {"tools": declared({"name": "f", "parametersJsonSchema": {"properties": {"a": {"type": "X"}}}})},
            "f.parameters.properties.a.type must be one or several of",
        ),
        (
            {"tools": declared({"name": "f"}), "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["g"]}}},
            "g may be called but is not declared",
        ),
        (
            {"tools": declared({"name": "f"}), "toolConfig": {"functionCallingConfig": {"allowedFunctionNames": ["f"]}}},
            "allowedFunctionNames is for the modes ANY and VALIDATED, not AUTO",
        ),
    ],
)
def test_requests_that_contradict_themselves_are_refused(body, message):
    with pytest.raises(ValueError, match=message):
        constraint(asked(**body), small_model())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, ("AUTO", None)),
        ({}, ("AUTO", None)),
        ({"functionCallingConfig": {"mode": "MODE_UNSPECIFIED"}}, ("AUTO", None)),
        ({"functionCallingConfig": {"mode": 2, "allowedFunctionNames": ["f"]}}, ("ANY", ["f"])),
        ({"functionCallingConfig": {"mode": "VALIDATED"}}, ("VALIDATED", None)),
        ({"functionCallingConfig": {"mode": "NONE"}}, ("NONE", None)),
    ],
)
def test_modes_of_calling(config, expected):
    assert calling(asked(**({} if config is None else {"toolConfig": config})).tool_config) == expected


def test_in_the_mode_none_functions_are_neither_declared_nor_called():
    request = asked(tools=declared({"name": "f"}), toolConfig={"functionCallingConfig": {"mode": "NONE"}})
    assert prompt_tools(request) == [] and declarations(request.tools)[0]["name"] == "f"
    assert not constraint(request, small_model()).allowed()[small_model().vocabulary.specials["<call>"]]


def test_a_declaration_without_parameters_takes_none():
    assert declarations(asked(tools=declared({"name": "f"})).tools) == [{"name": "f", "parameters": {"type": "object", "properties": {}}}]


def test_properties_without_an_object_around_them_are_those_of_one():
    """The official client writes so what it cannot say in the API's own words, such as a union of types."""
    about = {"$defs": {"Pet": {"type": "object", "properties": {"age": {"type": "integer"}}}}}
    written = {"pet": about | {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Pet"}]}, "loud": {"type": "boolean", "default": True}}
    made = declarations(asked(tools=declared({"name": "f", "parametersJsonSchema": written})).tools)[0]["parameters"]
    assert made["properties"]["pet"] == {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Pet"}]}
    assert (made["type"], made["required"], made["$defs"]) == ("object", ["pet"], about["$defs"])
    whole = {"type": "object", "properties": {"type": {"type": "string"}}}
    assert declarations(asked(tools=declared({"name": "f", "parametersJsonSchema": whole})).tools)[0]["parameters"] == whole


def test_what_no_grammar_can_keep_is_named():
    free = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    schema = {"properties": {"a": free, "b": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}}}
    request = asked(generationConfig={"responseJsonSchema": schema}, tools=declared({"name": "f", "parametersJsonSchema": schema}))
    places = ["generationConfig.responseJsonSchema", "tools[0].functionDeclarations[0].parametersJsonSchema"]
    assert not_kept(request) == [f"{place}.properties.a.uniqueItems" for place in places]
