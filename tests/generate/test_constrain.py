"""Constraints: whatever a random model writes under one is valid, and what is valid can be written."""

import json

import judge
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from walks import EXTRA, first_refused, gemma_vocabulary, may_end, must_end, wander

pytest.importorskip("llguidance", reason="llguidance is not installed: the extra serve has it")

from pollux.content import FunctionCall, Text  # noqa: E402
from pollux.generate import constrain  # noqa: E402
from pollux.tokens.interleave import decode_parts  # noqa: E402
from pollux.tokens.vocabulary import Vocabulary  # noqa: E402

quickly = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "sub": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}},
    "required": ["v"],
}
TREE = {"$ref": "#/$defs/node", "$defs": {"node": NODE}}
WEATHER = {
    "name": "weather",
    "description": "what the sky does",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
        "required": ["city"],
    },
}
STOP = {"name": "stop"}


@pytest.fixture(scope="module")
def words(vocabulary):
    plain = Vocabulary(vocabulary.tokenizer)
    return plain, plain.size + EXTRA


@pytest.fixture(scope="module")
def words_and_codes(vocabulary):
    return vocabulary, vocabulary.size + EXTRA


@pytest.fixture(scope="module")
def gemma():
    made = gemma_vocabulary()
    return made, made.size + EXTRA


@pytest.fixture(params=["own layout", "Gemma 4"])
def either(request, words, gemma):
    return words if request.param == "own layout" else gemma


def written(constraint, vocabulary, seeds, **how):
    """The texts of the walks that came to an end."""
    walks = [wander(constraint.fresh(), vocabulary, seed, **how) for seed in seeds]
    return [vocabulary.decode(ids) for ids in walks if ids is not None]


@quickly
@given(judge.schemas, st.integers(0, 10**6))
def test_what_a_random_model_writes_under_any_schema_is_valid(words, schema, seed):
    ids = wander(constrain.json_schema(schema, *words), words[0], seed)
    if ids is not None:
        text = words[0].decode(ids)
        assert judge.is_valid(json.loads(text), schema), text


@quickly
@given(judge.schemas, st.data())
def test_every_document_of_a_schema_can_be_written_token_by_token(words, schema, data):
    document = data.draw(judge.documents(schema))
    layout = (
        {}
        if "const" in str(schema) or "enum" in str(schema)
        else data.draw(st.sampled_from([{"indent": 2}, {"separators": (",", ":")}, {}]))
    )
    ids = words[0].encode_text(json.dumps(document, ensure_ascii=False, **layout))
    constraint = constrain.json_schema(schema, *words)
    assert first_refused(constraint, ids) == len(ids)
    assert may_end(constraint, words[0])


@quickly
@given(judge.objects(judge.schemas), st.integers(0, 10**6))
def test_the_arguments_of_calls_are_valid_as_they_are_read(either, schema, seed):
    vocabulary = either[0]
    ids = wander(constrain.calls([{"name": "do", "parameters": schema}], *either, "ANY"), vocabulary, seed)
    for part in decode_parts(ids or [], vocabulary):
        assert isinstance(part, FunctionCall) and part.name == "do", vocabulary.decode(ids)
        assert judge.is_valid(json.loads(json.dumps(part.args)), schema), vocabulary.decode(ids)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {}},
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 2},
        {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False, "minItems": 1},
        {"enum": ["two words", "größe", 'say "no"', "a\\b\n", "👍", "", None, -1.5, [], {"a": [1, {}]}]},
        {"oneOf": [{"type": "integer", "maximum": -1}, {"type": "string", "maxLength": 2}]},
        {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}},
        {"allOf": [{"$ref": "#/$defs/x"}, {"minimum": 3}], "$defs": {"x": {"type": "integer", "maximum": 5}}},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
        {"type": "string", "minLength": 2, "maxLength": 2},
        TREE,
    ],
)
def test_walks_under_a_schema_end_with_valid_documents(words, schema):
    texts = written(constrain.json_schema(schema, *words), words[0], range(12), steps=600)
    assert len(texts) > 6
    for text in texts:
        assert judge.is_valid(json.loads(text), schema), text
        text.encode()


def test_nullable_admits_null_besides_the_values(words):
    schema = {"type": "string", "enum": ["a"], "nullable": True}
    assert set(written(constrain.json_schema(schema, *words), words[0], range(20))) == {'"a"', "null"}


def test_properties_come_in_the_order_that_is_asked_for(words):
    schema = {"properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["a", "b"], "propertyOrdering": ["b", "a"]}
    for text in written(constrain.json_schema(schema, *words), words[0], range(3)):
        assert list(json.loads(text)) == ["b", "a"]


@pytest.mark.parametrize("text", [r'"\u00e9\ud83d\ude00\n\/"', '"\\""', '"\x80é"'])
def test_escapes_are_read_as_json_has_them(words, text):
    ids = words[0].encode_text(text)
    assert first_refused(constrain.json_schema({"type": "string"}, *words), ids) == len(ids)


@pytest.mark.parametrize("text", [r'"\ud83d"', r'"\udc00', '"\n', r'"\x', "01", "+1", "1.", ".5", "1e999", "- 1", "NaN"])
def test_what_is_no_json_is_refused(words, text):
    ids = words[0].encode_text(text)
    constraint = constrain.json_schema(True, *words)
    assert first_refused(constraint, ids) < len(ids) or not may_end(constraint, words[0])


@pytest.mark.parametrize(
    ("schema", "text"),
    [({"type": "integer"}, "1" * 40), ({"type": "number"}, "0." + "1" * 40), ({"type": "array"}, "[" + " " * 40), ({}, "[\n" + " " * 60)],
)
def test_digits_and_whitespace_come_to_an_end(words, schema, text):
    ids = words[0].encode_text(text)
    assert first_refused(constrain.json_schema(schema, *words), ids) < len(ids)


def test_an_answer_may_stop_only_where_the_grammar_can_and_must_where_nothing_else_is_left(words):
    vocabulary, constraint = words[0], constrain.json_schema({"type": "array", "items": {"const": 7}, "maxItems": 1}, *words)
    for i in vocabulary.encode_text("[7"):
        assert not constraint.allowed()[list(vocabulary.stops)].any()
        constraint.accept(i)
    assert not may_end(constraint, vocabulary)
    constraint.accept(vocabulary.encode_text("]")[0])
    assert must_end(constraint, vocabulary)
    constraint.accept(vocabulary.stops[1])


def test_only_text_is_allowed_under_a_schema(either):
    vocabulary, vocab_size = either
    constraint = constrain.json_schema({"type": "string"}, *either)
    constraint.accept(vocabulary.encode_text('"')[-1])
    allowed = constraint.allowed()
    assert allowed.shape == (vocab_size,) and allowed.dtype == bool
    assert not allowed[vocabulary.code_offset :].any() and not allowed[list(vocabulary.special_ids)].any()
    assert allowed[vocabulary.encode_text("a")].all()


def test_tokens_of_the_vocabulary_that_only_look_special_are_text(gemma):
    vocabulary = gemma[0]
    tag = vocabulary.tokenizer.token_to_id("<b>")
    assert vocabulary.encode_text("<b>") == [tag]
    ids = vocabulary.encode_text('"<b>é 👍"')
    assert tag in ids and first_refused(constrain.json_schema({"type": "string"}, *gemma), ids) == len(ids)


def test_a_fresh_constraint_is_at_its_start_whatever_the_first_one_wrote(words):
    vocabulary, first = words[0], constrain.choice(["yes", "no"], *words)
    start = first.allowed()
    first.accept(vocabulary.encode_text("yes")[0])
    second = first.fresh()
    assert (second.allowed() == start).all() and not (first.allowed() == start).all()
    assert not (constrain.choice(["x"], *words).allowed() == start).all()


def test_an_id_that_is_not_allowed_is_refused_in_a_sentence(words):
    constraint = constrain.choice(["yes"], *words)
    with pytest.raises(ValueError, match="the id 1 is not allowed here"):
        constraint.accept(1)


def test_a_choice_is_one_of_its_strings(either):
    strings = ["red", "red wine", "größe", "two\nlines", 'a"b', "👍"]
    made = set(written(constrain.choice(strings, *either), either[0], range(60), closing=0.1))
    assert made <= set(strings) and len(made) == len(strings)
    for text in strings:
        constraint, ids = constrain.choice(strings, *either), either[0].encode_text(text)
        assert first_refused(constraint, ids) == len(ids) and may_end(constraint, either[0])


@pytest.mark.parametrize("strings", [[], ["a", ""], [1]])
def test_a_choice_of_nothing_is_refused(words, strings):
    with pytest.raises(ValueError, match="at least one text"):
        constrain.choice(strings, *words)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (3, r"schema must be a schema, not 3"),
        ({"type": "text"}, r"schema.type must be one or several of"),
        ({"properties": {"a": {"items": {"multipleOf": 2}}}}, r"schema.properties.a.items: the keyword 'multipleOf' is not supported"),
        ({"anyOf": [{}, {"not": {}}]}, r"schema.anyOf\[1\]: the keyword 'not' is not supported"),
        ({"allOf": []}, r"schema.allOf must be a list of at least one schema"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, r"schema.properties.a.\$ref: there is nothing at '#/\$defs/b'"),
        ({"$ref": "http://x/y"}, r"must point into the same schema"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, r"schema: no value lies between"),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, r"schema: no value lies between"),
        ({"type": "number", "minimum": "x"}, r"schema.minimum must be a number"),
        ({"type": "number", "minimum": 1e-25}, r"schema: 1e-25 has more than 20 decimals"),
        ({"minLength": -1}, r"schema.minLength must be a whole number"),
        ({"type": "string", "pattern": "a(?=b)"}, r"schema.pattern 'a\(\?=b\)' cannot be followed: look-around"),
        ({"enum": []}, r"schema.enum must be a list of at least one value"),
        ({"type": "string", "enum": [1, 2]}, r"none of the values of enum is of the type string"),
        ({"required": ["a"], "additionalProperties": False}, r"schema.required names 'a', which is not among the properties"),
        ({"enum": ["\ud800"]}, r"schema.enum: .* is not valid Unicode"),
        ({"anyOf": [{"properties": {"a": {}}}], "properties": {"b": {}}}, r"schema.anyOf\[0\]: 'properties' stands here and in the schema"),
        ({"$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}}, "$ref": "#/$defs/n"}, r"can ever be complete"),
        ({"$ref": "#"}, r"schema: no value can ever be complete"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_with_its_place(words, schema, message):
    with pytest.raises(ValueError, match=message):
        constrain.json_schema(schema, *words)


def test_a_schema_without_end_is_refused_and_not_followed_for_ever(words):
    deep = {}
    for _ in range(500):
        deep = {"items": deep, "minItems": 1}
    with pytest.raises(ValueError, match="nested deeper than 64"):
        constrain.json_schema(deep, *words)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"$defs": {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(999)} | {"d999": {}}, "$ref": "#/$defs/d0"},
            "too deeply",
        ),
        ({"properties": {f"p{i}": {} for i in range(101)}, "minProperties": 2}, "go with up to 100 properties, not 101"),
        ({"prefixItems": [{"type": "null"}] * 21_000}, "more than 20,000 rules"),
        ({"type": "string", "pattern": "a" * 5001}, "up to 5,000 characters"),
    ],
)
def test_schemas_beyond_reason_are_refused(words, schema, message):
    with pytest.raises(ValueError, match=message):
        constrain.json_schema(schema, *words)


@settings(quickly, max_examples=10)
@given(st.lists(st.booleans(), min_size=37, max_size=37), st.booleans())
def test_any_of_many_optional_properties_may_be_left_out(words, chosen, closed):
    names = [f"p{i}" for i in range(37)]
    schema = {"properties": {name: {"const": 1} for name in names}, "required": ["p5", "p20"], "additionalProperties": not closed}
    document = {name: 1 for name, given_one in zip(names, chosen, strict=True) if given_one or name in ("p5", "p20")}
    document |= {} if closed else {"q": None}
    ids = words[0].encode_text(json.dumps(document, separators=(",", ":")))
    constraint = constrain.json_schema(schema, *words)
    assert first_refused(constraint, ids) == len(ids) and may_end(constraint, words[0])
    missing = words[0].encode_text(json.dumps(dict.fromkeys(names[:20], 1) | {"p21": 1}, separators=(",", ":")))
    assert first_refused(constrain.json_schema(schema, *words), missing) < len(missing)


def test_what_could_never_be_closed_is_never_opened(words):
    endless = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}
    schema = {"$defs": {"n": endless}, "type": "object", "properties": {"a": {"const": 1}, "n": {"$ref": "#/$defs/n"}}}
    texts = {text.replace(" ", "") for text in written(constrain.json_schema(schema, *words), words[0], range(20), closing=0.9)}
    assert all(json.loads(text) in ({}, {"a": 1}) for text in texts) and len(texts) > 1


@pytest.mark.parametrize("mode", constrain.MODES)
def test_modes_of_function_calling(either, mode):
    vocabulary, constraint = either[0], constrain.calls([WEATHER, STOP], *either, mode)
    kinds = set()
    for seed in range(40):
        ids = wander(constraint.fresh(), vocabulary, seed, steps=150)
        if ids is None:
            continue
        parts = decode_parts(ids, vocabulary)
        kinds.add(frozenset(type(part) for part in parts if not isinstance(part, Text) or part.text.strip()))
        for call in (part for part in parts if isinstance(part, FunctionCall)):
            assert call.name in ("weather", "stop") and not (call.name == "stop" and call.args)
            assert call.name == "stop" or judge.is_valid(dict(call.args), WEATHER["parameters"])
    text, calls = frozenset({Text}), frozenset({FunctionCall})
    expected = {"ANY": {calls}, "NONE": {text, frozenset()}, "VALIDATED": {text, calls, frozenset()}}
    expected["AUTO"] = expected["VALIDATED"] | {text | calls}
    assert kinds <= expected[mode] and kinds & {text, calls}


def test_auto_and_validated_differ_in_text_before_a_call(either):
    vocabulary = either[0]
    ids = [*vocabulary.encode_text("so"), vocabulary.specials["<call>"]]
    places = {mode: first_refused(constrain.calls([STOP], *either, mode), ids) for mode in constrain.MODES}
    assert places == {"AUTO": len(ids), "VALIDATED": len(ids) - 1, "NONE": len(ids) - 1, "ANY": 0}


def test_calls_are_written_as_models_were_trained_to(words, gemma):
    vocabulary = words[0]
    ids = [vocabulary.specials["<call>"], *vocabulary.encode_text('{"name":"weather","args":{"city":"Oslo","days":3}}')]
    constraint = constrain.calls([WEATHER, STOP], *words, "ANY")
    assert first_refused(constraint, [*ids, vocabulary.specials["</call>"]]) == len(ids) + 1 and may_end(constraint, vocabulary)
    vocabulary = gemma[0]
    quote = vocabulary.tokenizer.token_to_id('<|"|>')
    ids = [vocabulary.specials["<call>"], *vocabulary.encode_text("call:weather{city:"), quote, *vocabulary.encode_text('O"slo {é}'), quote]
    ids += [*vocabulary.encode_text(",days:3}"), vocabulary.specials["</call>"]]
    constraint = constrain.calls([WEATHER, STOP], *gemma, "ANY")
    assert first_refused(constraint, ids) == len(ids) and may_end(constraint, vocabulary)


def test_only_the_functions_that_are_named_may_be_called(either):
    constraint = constrain.calls([WEATHER, STOP], *either, "ANY", ["stop"])
    calls = [decode_parts(ids, either[0]) for seed in range(6) if (ids := wander(constraint.fresh(), either[0], seed))]
    assert {part.name for parts in calls for part in parts} == {"stop"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([STOP], "SOMETIMES"), "mode of function calling is 'SOMETIMES'"),
        (([STOP], "ANY", ["go"]), "go may be called but is not declared; declared are stop"),
        (([], "ANY"), "there is none that may be"),
        (([{"name": "f", "parameters": {"type": "string"}}],), "f.parameters must be the schema of an object"),
        (([{"name": "f", "parameters": {"properties": {"a": {"type": "x"}}}}],), "f.parameters.properties.a.type must be one"),
        (([{"description": "nameless"}],), "a tool is declared by its"),
    ],
)
def test_declarations_that_cannot_be_followed_are_refused(words, arguments, message):
    tools, *how = arguments
    with pytest.raises(ValueError, match=message):
        constrain.calls(tools, *words, *how)


def test_text_may_hold_drawings_beside_calls(words_and_codes):
    vocabulary, constraint = words_and_codes[0], constrain.calls([STOP], *words_and_codes)
    drawing = [vocabulary.specials["<draw>"], *vocabulary.code_ids(np.array([[3, 2], [0, 1]])).tolist(), vocabulary.specials["</draw>"]]
    ids = [*vocabulary.encode_text("see "), *drawing, *vocabulary.encode_text(" and so on")]
    assert first_refused(constraint, ids) == len(ids) and may_end(constraint, vocabulary)
    assert not constraint.fresh().allowed()[vocabulary.specials["<image>"]]
    assert not constrain.json_schema(True, *words_and_codes).allowed()[[vocabulary.specials["<draw>"], vocabulary.code_offset]].any()


def test_a_model_of_elsewhere_may_think_before_it_calls(gemma):
    vocabulary, constraint = gemma[0], constrain.calls([STOP], *gemma)
    thought = [vocabulary.specials["<thought>"], *vocabulary.encode_text("hm"), vocabulary.specials["</thought>"]]
    assert first_refused(constraint, [*thought, vocabulary.specials["<call>"]]) == len(thought) + 1


def test_a_vocabulary_without_an_end_of_turn_cannot_be_constrained(gemma):
    vocabulary = gemma_vocabulary()
    vocabulary.stops = ()
    with pytest.raises(ValueError, match="no id that ends its turn"):
        constrain.choice(["a"], vocabulary, 500)


def test_no_text_follows_a_call_that_is_to_be_answered_first(words):
    vocabulary = words[0]
    text = vocabulary.encode_text("so")
    opening, closing = ([vocabulary.specials[name]] for name in ("<call>", "</call>"))
    stop, go = ([*opening, *vocabulary.encode_text(f'{{"name":"{name}","args":{{}}}}'), *closing] for name in ("stop", "go"))
    constraint = constrain.calls([STOP, {"name": "go"}], *words, "AUTO", last=["stop"])
    for ids, refused in (
        ([*text, *stop, *text], len(text + stop)),
        ([*stop, *go, *text], len(stop + go)),
        ([*text, *go, *text, *go, *stop, *stop, *go], None),
        ([*text], None),
    ):
        again = constraint.fresh()
        assert first_refused(again, ids) == (len(ids) if refused is None else refused)
        assert refused is not None or may_end(again, vocabulary)
