"""Filters over metadata, against Python's own logic and in their corners."""

import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.serve.retrieval.filters import parse

BOOK = {"author": "Robert Graves", "year": 1927.0, "tags": ("poetry", "modern"), "with space": "x"}


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ('author = "Robert Graves"', True),
        ("author = 'Robert Graves' year = 1927", True),
        ("year > 1926 AND year <= 1927", True),
        ("year >= 1928 OR tags = modern", True),
        ("NOT year < 1900", True),
        ("-year = 1927", False),
        ("year = 1927.0", True),
        ("year != 1927", False),
        ("year = abc", False),
        ('author : "graves"', True),
        ("tags : poetry", True),
        ("tags : *", True),
        ("missing : *", False),
        ('tags != "prose"', True),
        ("missing != 1", False),
        ("NOT missing = 1", True),
        ("author = x AND author = y OR year = 1927", False),  # OR binds more closely, as AIP-160 has it
        ("(author = x AND author = y) OR year = 1927", True),
        ('"with space" = x', True),
        ("", True),
    ],
)
def test_a_filter_passes_what_it_says(text, passes):
    assert parse(text)(BOOK) is passes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("author", "ends where =, !=, <"),
        ("author =", "ends where a value"),
        ("(year = 1", "ends where a closing parenthesis"),
        ("year = 1)", r"'\)' at character 9"),
        ("= 1", "'=' at character 1, where the name of a field"),
        ('author = "open', "cannot be read from character 10"),
        ("year = 1 AND", "ends where the name of a field"),
        ("NOT " * 60 + "a = 1", "nested more than 50 deep"),
        ("a = " + "x" * 20_000, "more than the 10000"),
    ],
)
def test_a_wrong_filter_says_where(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


LEAVES = st.builds(
    lambda key, sign, value: (f"{key} {sign} {value}", lambda d: SIGNS[sign](d[key], float(value))),
    st.sampled_from("ab"),
    st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
    st.integers(0, 3),
)
SIGNS = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]}) AND ({p[1][0]})", lambda d: p[0][1](d) and p[1][1](d))),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]}) OR ({p[1][0]})", lambda d: p[0][1](d) or p[1][1](d))),
        inner.map(lambda p: (f"NOT ({p[0]})", lambda d: not p[1](d))),
    ),
    max_leaves=8,
)


@given(TREES, st.integers(0, 3), st.integers(0, 3))
def test_filters_combine_as_logic_does(tree, a, b):
    text, expected = tree
    values = {"a": float(a), "b": float(b)}
    assert parse(text)(values) == expected(values)


@settings(max_examples=300)
@given(st.text("ab=<>!:()-\"' \\*1ANDORNOT", max_size=30))
def test_any_text_is_a_filter_or_a_mistake_that_is_named(text):
    try:
        assert parse(text)({"a": 1.0, "b": "x"}) in (True, False)
    except ValueError as error:
        assert str(error).startswith("the filter")
