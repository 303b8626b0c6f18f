"""Constrained answers of a model that writes anything that it may: they are whole although their tokens run out."""

import json

import numpy as np
import pytest

from pollux.generate import constrain
from pollux.generate.ending import Ending

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "size": {"type": "number"},
        "kids": {"type": "array", "items": {"type": "object", "properties": {"who": {"type": "string"}}, "required": ["who"]}},
    },
    "required": ["name", "size", "kids"],
}
LIST = {
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["next"]}
    }
}
LIST |= {"$ref": "#/$defs/node"}


def written(constraint, stops, rng, most, last=()):
    """Ids drawn from what is allowed, the end and the last ones only where nothing else is."""
    ids = []
    for _ in range(most):
        allowed = np.flatnonzero(constraint.allowed())
        ids.append(int(rng.choice([i for i in allowed if i not in (*stops, *last)] or allowed)))
        if ids[-1] in stops:
            break
        constraint.accept(ids[-1])
    return ids


@pytest.mark.parametrize(
    "schema", [True, PERSON, LIST, {"type": "string", "pattern": "^[a-z]{5,}$"}, {"type": "array", "items": {"enum": ["abc", "de"]}}]
)
def test_json_is_whole_when_its_tokens_run_out(vocabulary, schema):
    ending = Ending(constrain.json_schema(schema, vocabulary, vocabulary.size), vocabulary, vocabulary.size, 100)
    rng = np.random.default_rng(0)
    for _ in range(5):
        ids = written(ending.fresh(), vocabulary.stops, rng, 100)
        assert ids[-1] in vocabulary.stops
        json.loads(vocabulary.decode(ids[:-1]))


def test_a_list_is_whole_though_its_last_element_began_late(vocabulary):
    point = {key: {"type": "boolean"} for key in ("red", "blue", "green")}
    schema = {"type": "array", "items": {"type": "object", "properties": point, "required": list(point)}}
    ending = Ending(constrain.json_schema(schema, vocabulary, vocabulary.size), vocabulary, vocabulary.size, 300)
    closers = {i for text, i in vocabulary.tokenizer.get_vocab().items() if "]" in text or not vocabulary.decode([i]).strip()}
    rng = np.random.default_rng(0)
    for _ in range(12):
        ids = written(ending.fresh(), vocabulary.stops, rng, 300, closers)
        assert ids[-1] in vocabulary.stops
        json.loads(vocabulary.decode(ids[:-1]))


def test_an_answer_that_ends_by_itself_is_left_alone(vocabulary):
    inner = constrain.json_schema({"type": "integer"}, vocabulary, vocabulary.size)
    ending = Ending(inner, vocabulary, vocabulary.size, 100).fresh()
    ids = vocabulary.encode_text("12")
    for i in ids:
        np.testing.assert_array_equal(ending.allowed(), inner.allowed())
        ending.accept(i)
        inner.accept(i)
    assert not ending.closed(ids) and ending.allowed()[list(vocabulary.stops)].any()


def test_whether_an_answer_was_closed_can_be_told_from_its_ids(vocabulary):
    ending = Ending(constrain.json_schema({"type": "string"}, vocabulary, vocabulary.size), vocabulary, vocabulary.size, 30)
    ids = written(ending.fresh(), vocabulary.stops, np.random.default_rng(0), 30)
    assert ending.closed(ids) and not ending.closed(ids[:20])


def test_a_grammar_that_is_too_much_work_fails_where_an_id_is_accepted(vocabulary, monkeypatch):
    inner = constrain.json_schema({"type": "string"}, vocabulary, vocabulary.size)
    ending = Ending(inner, vocabulary, vocabulary.size, 100).fresh()

    def refuse(self):
        raise ValueError("too much work")

    monkeypatch.setattr(constrain.GrammarConstraint, "allowed", refuse)
    token = int(np.flatnonzero(ending.allowed())[0])
    with pytest.raises(ValueError, match="too much work"):
        ending.accept(token)


def test_text_between_calls_is_not_ended_early(vocabulary):
    calls = constrain.calls([{"name": "f"}], vocabulary, vocabulary.size, "AUTO")
    ending = Ending(calls, vocabulary, vocabulary.size, 20)
    assert not ending.closed(vocabulary.encode_text("a big red circle is left of it")[:19])


def test_a_call_is_whole_when_its_tokens_run_out(vocabulary):
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
    ending = Ending(constrain.calls([tool], vocabulary, vocabulary.size, "ANY"), vocabulary, vocabulary.size, 60)
    ids = written(ending.fresh(), vocabulary.stops, np.random.default_rng(1), 60)
    assert ids[-1] in vocabulary.stops and ids[-2] == vocabulary.specials["</call>"]
