"""Arrays whose items are all different."""

import itertools
import json

import pytest
from walks import EXTRA, first_refused, may_end, wander

pytest.importorskip("llguidance", reason="llguidance is not installed: the extra serve has it")

from pollux.generate import constrain  # noqa: E402
from pollux.tokens.vocabulary import Vocabulary  # noqa: E402

ROLES = ["admin", "viewer", "owner"]


@pytest.fixture(scope="module")
def words(vocabulary):
    plain = Vocabulary(vocabulary.tokenizer)
    return plain, plain.size + EXTRA


def admitted(schema, words, value):
    """Whether a constraint lets a value be written, to its end."""
    constraint, vocabulary = constrain.json_schema(schema, *words).fresh(), words[0]
    ids = vocabulary.encode_text(json.dumps(value))
    return first_refused(constraint, ids) == len(ids) and may_end(constraint, vocabulary)


@pytest.mark.parametrize("bounds", [{}, {"minItems": 1}, {"minItems": 2, "maxItems": 2}, {"maxItems": 9}])
@pytest.mark.parametrize("referred", [False, True])
def test_exactly_the_arrays_without_repetition_can_be_written(words, bounds, referred):
    values = {"enum": ROLES, "type": "string", "title": "Role"}
    schema = {"type": "array", "items": {"$ref": "#/$defs/role"} if referred else values, "uniqueItems": True, "$defs": {"role": values}}
    least, most = bounds.get("minItems", 0), bounds.get("maxItems", 9)
    for length in range(5):
        for array in itertools.product(ROLES, repeat=length):
            valid = len(set(array)) == length and least <= length <= most
            assert admitted(schema | bounds, words, list(array)) == valid, array


def test_more_different_items_than_there_are_values_cannot_be(words):
    with pytest.raises(ValueError, match="no value lies between the bounds"):
        constrain.json_schema({"type": "array", "items": {"enum": ROLES}, "uniqueItems": True, "minItems": 4}, *words)


@pytest.mark.parametrize("items", [{"type": "string", "maxLength": 2}, {"enum": list(range(9))}, {"type": "integer", "enum": ["a", 1]}])
def test_items_beyond_a_few_values_are_written_without_regard_to_it(words, items):
    schema = {"type": "array", "items": items, "uniqueItems": True, "maxItems": 3}
    one = {"string": "a", "integer": 1}.get(items.get("type", ""), 3)
    assert admitted(schema, words, [one, one])
    assert wander(constrain.json_schema(schema, *words), words[0], 0) is not None
