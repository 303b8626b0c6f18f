"""Patterns of numbers and strings in grammars, against Python's own comparison and search."""

import json
import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

llguidance = pytest.importorskip("llguidance", reason="llguidance is not installed: the extra serve has it")

from pollux.generate.number_patterns import number  # noqa: E402
from pollux.generate.value_forms import FORMATS, searched  # noqa: E402

BYTES = llguidance.LLTokenizer("byte")
whole = st.integers(-1200, 1200)
tenths = st.decimals(-60, 60, places=2).map(float)


def matches(terminal, text):
    matcher = llguidance.LLMatcher(BYTES, llguidance.LLMatcher.grammar_from_lark(f"start: T\nT: {terminal}"), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(st.booleans(), st.none() | whole | tenths, st.none() | whole | tenths, st.booleans(), st.booleans(), st.data())
def test_numbers_lie_between_their_bounds_and_all_that_do_are_admitted(integer, low, high, low_open, high_open, data):
    terminal = number(integer, low, high, low_open, high_open)
    steps = st.sampled_from([0, 1, -1, 9, 0.1, -0.1, 0.01, -0.01, 1e-4, -1e-4, 0.5])
    for step in data.draw(st.lists(steps, min_size=4, max_size=4, unique=True)):
        near = data.draw(st.sampled_from([bound for bound in (low, high) if bound is not None] + [0])) + step
        text = str(int(near)) if integer else format(Decimal(str(round(near, 6))), "f")
        value = json.loads(text)
        above = low is None or (value > low if low_open else value >= low)
        below = high is None or (value < high if high_open else value <= high)
        assert (terminal is not None and matches(terminal, text)) == (above and below and text != "-0"), text


@pytest.mark.parametrize(
    ("how", "text", "admitted"),
    [
        ((False,), "-1.5e-7", True),
        ((False,), "6.02E+23", True),
        ((False,), "999999999999999999e289", True),  # the largest, still a finite double
        ((False,), "1e290", False),
        ((True,), "9" * 18, True),
        ((True,), "9" * 19, False),
        ((False,), "0." + "1" * 20, True),
        ((False,), "0." + "1" * 21, False),
        ((False, 0, 10**300), "5.5", True),
        ((False, None, 0.1, False, True), "0.0" + "9" * 12, True),
        ((False, None, 0.1, False, True), "0.0" + "9" * 19, False),  # is 0.1 as a double
        ((True, -(2**31), 2**31 - 1), "2147483647", True),
        ((True, -(2**31), 2**31 - 1), "2147483648", False),
        ((True, -(2**31), 2**31 - 1), "-2147483648", True),
    ],
)
def test_numbers_have_a_size(how, text, admitted):
    assert matches(number(*how), text) is admitted


@pytest.mark.parametrize(
    "how", [(True, 3, 2), (True, 1, 2, True, True), (False, 1, 1, True), (False, 10**18), (False, 0, 1e-15, True, True)]
)
def test_bounds_without_a_number_between_them(how):
    assert number(*how) is None


@pytest.mark.parametrize(
    "pattern",
    [
        "b+",
        r"a{2,5}b|c/d",
        r"(?:yes|no)\.",
        r"[^\W\d]{3}",
        "a\nb",
        "^a|c$",
        "^(a|b)$",
        r"\d\d",
        r"[|]",
        r"\|$",
        r"a\$",
        "x/y",
        "",
        "^$",
        r"\[a|b",
    ],
)
def test_a_pattern_is_searched_for_and_its_anchors_hold(pattern):
    for text in ("a", "ab", "ba", "c", "ca", "ac", "12", "a12b", "x/y", "|", "a|", "a$", "a$b", "[a", "\n", "b\n"):
        found = re.search(pattern.replace("$", r"\Z").replace(r"\\Z", r"\$"), text, re.ASCII) is not None
        assert matches(f"/{searched(pattern)}/", text) == found, (pattern, text)


@pytest.mark.parametrize(
    ("name", "text", "admitted"),
    [
        ("date", "2024-02-29", True),
        ("date", "2023-02-29", False),
        ("date", "1900-02-29", False),
        ("date", "2000-02-29", True),
        ("date", "2023-04-31", False),
        ("time", "23:59:59.5Z", True),
        ("time", "24:00:00Z", False),
        ("date-time", "2024-12-31T00:00:00+01:30", True),
        ("date-time", "2024-12-31 00:00:00Z", False),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", True),
    ],
)
def test_formats(name, text, admitted):
    assert matches(f"/{FORMATS[name]}/", text) is admitted
