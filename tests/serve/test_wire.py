"""Proto-JSON as clients write it, and what they are told when they write something else."""

import base64
import datetime
import json
import string
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.serve.errors import ApiError
from pollux.serve.wire import relaxed
from pollux.serve.wire.body import MAX_DEPTH, decode
from pollux.serve.wire.content import Blob, Content, Part
from pollux.serve.wire.enums import FinishReason, ResponseModality
from pollux.serve.wire.generate import Candidate, GenerateContentRequest, GenerationConfig, TokenLogprob
from pollux.serve.wire.message import parse, to_json, wire


class Colour(IntEnum):
    NONE = 0
    RED = 1


@dataclass(frozen=True)
class Everything:
    some_text: str = ""
    flag: bool = False
    small: int | None = None
    size_bytes: int | None = wire(bits=64)
    share: float | None = None
    data: bytes = b""
    colour: Colour = Colour.NONE
    colours: tuple[Colour, ...] = ()
    wait: datetime.timedelta | None = None
    expire_time: datetime.datetime | None = None
    plain: Any = None
    table: dict[str, Any] | None = None
    inner: "Everything | None" = None
    items: tuple["Everything", ...] = ()
    one: str | None = wire(oneof="choice")
    other: str | None = wire(oneof="choice")


def read(data):
    return parse(Everything, data)[0]


@pytest.mark.parametrize("data", [{"someText": "a", "inner": {"someText": "b"}}, {"some_text": "a", "inner": {"some_text": "b"}}])
def test_fields_are_read_in_both_spellings(data):
    assert read(data) == Everything("a", inner=Everything("b"))


@pytest.mark.parametrize("value", [20, 20.0, "20", "20.0", "2e1"])
def test_an_integer_may_be_any_number_that_is_whole(value):
    assert read({"small": value, "sizeBytes": value}) == Everything(small=20, size_bytes=20)


def test_integers_of_64_bits_are_exact_in_and_out():
    number = 2**63 - 1
    assert read({"sizeBytes": str(number)}).size_bytes == read({"sizeBytes": number}).size_bytes == number
    assert to_json(Everything(size_bytes=number)) == {"sizeBytes": str(number)}


@pytest.mark.parametrize("value", ["RED", "red", 1, 1.0])
def test_an_enum_may_be_a_name_or_a_number(value):
    assert read({"colour": value, "colours": [value, 0]}) == Everything(colour=Colour.RED, colours=(Colour.RED, Colour.NONE))
    assert to_json(Everything(colour=Colour.RED)) == {"colour": "RED"}
    assert to_json(Everything(colour=Colour.RED), numbers=True) == {"colour": 1}


@pytest.mark.parametrize("spelled", [base64.b64encode(b"\xff\xfe\xfd\x00"), base64.urlsafe_b64encode(b"\xff\xfe\xfd\x00"), b"__79AA"])
def test_bytes_may_be_base64_of_either_alphabet_with_or_without_padding(spelled):
    assert read({"data": spelled.decode()}).data == b"\xff\xfe\xfd\x00"


def test_times_and_durations():
    message = read({"wait": "3.5s", "expireTime": "2030-01-31T12:00:00.123456789+01:00"})
    assert message.wait == datetime.timedelta(seconds=3.5)
    assert message.expire_time == datetime.datetime(2030, 1, 31, 11, 0, 0, 123456, datetime.UTC)
    assert to_json(message) == {"wait": "3.5s", "expireTime": "2030-01-31T11:00:00.123456Z"}


def test_null_is_as_good_as_nothing_and_one_message_as_a_list_of_one():
    assert read({"someText": None, "items": None, "inner": None}) == Everything()
    assert read({"items": {"small": 1}}) == Everything(items=(Everything(small=1),))


def test_unknown_fields_are_noted_with_their_paths():
    _, ignored = parse(Everything, {"new": 1, "inner": {"items": [{}, {"newer": {"deep": 1}}]}, "table": {"free": 1}})
    assert ignored == ["new", "inner.items[1].newer"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"someText": 1}, "someText must be a string, not 1"),
        ({"some_text": 1}, "some_text must be a string, not 1"),
        ({"flag": "yes"}, "flag must be true or false, not 'yes'"),
        ({"small": 1.5}, "small must be an integer, not 1.5"),
        ({"small": True}, "small must be an integer, not True"),
        ({"small": 2**31}, "small is 2147483648, which is not a 32-bit integer"),
        ({"sizeBytes": str(2**63)}, "which is not a 64-bit integer"),
        ({"share": "much"}, "share must be a finite number, not 'much'"),
        ({"share": "NaN"}, "share must be a finite number"),
        ({"data": "a$"}, "data is not base64"),
        ({"colour": "BLUE"}, "colour must be one of NONE, RED, not 'BLUE'"),
        ({"colour": 7}, "colour must be one of NONE, RED, not 7"),
        ({"wait": "5 minutes"}, "wait must be seconds such as"),
        ({"expireTime": "tomorrow"}, "expireTime must be a time such as"),
        ({"table": []}, "table must be an object, not a list"),
        ({"items": ["a"]}, r"items\[0\] must be an object, not 'a'"),
        ({"inner": {"items": [{}, {"small": "x"}]}}, r"inner.items\[1\].small must be an integer, not 'x'"),
        ({"one": "a", "other": "b"}, "other and one are mutually exclusive: only one of them may be set"),
        ([], "the request must be an object, not a list"),
    ],
)
def test_a_wrong_type_is_a_400_that_names_the_field(data, said):
    with pytest.raises(ApiError, match=said) as raised:
        parse(Everything, data)
    assert raised.value.code == 400 and raised.value.status == "INVALID_ARGUMENT"


def test_names_that_no_rule_makes():
    for name in ("responseJsonSchema", "response_json_schema", "_responseJsonSchema", "_response_json_schema"):
        assert parse(GenerationConfig, {name: {"type": "object"}})[0].response_json_schema == {"type": "object"}


def test_an_answer_is_written_without_what_it_does_not_have():
    part = Part(inline_data=Blob("image/png", b"\x00\xff"))
    message = Candidate(Content((part,), "model"), FinishReason.STOP, index=0, avg_logprobs=float("-inf"))
    assert to_json(message) == {
        "content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "AP8="}}], "role": "model"},
        "finishReason": "STOP",
        "index": 0,
        "avgLogprobs": "-Infinity",
    }
    assert to_json(TokenLogprob("", 0, 0.0)) == {"token": "", "tokenId": 0, "logProbability": 0.0}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b'{"a": NaN}', "NaN is no value of JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested more than 100 deep"),
        (b'{"a": [{"b": "\\ud800"}]}', r"a\[0\].b holds half of a surrogate pair"),
        (b'{"\\udfff": 1}', "holds half of a surrogate pair"),
    ],
)
def test_a_body_that_cannot_be_read_is_a_400(body, said):
    with pytest.raises(ApiError, match=said) as raised:
        decode(body)
    assert raised.value.code == 400


def test_bodies_that_look_odd_are_read():
    assert decode(b"") == {} and decode(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("{'file': {'display_name': 'a \"b\" it\\'s'}}", {"file": {"display_name": 'a "b" it\'s'}}),
        ("{safetySettings: [{category: 7, threshold: 4},],}", {"safetySettings": [{"category": 7, "threshold": 4}]}),
        ('{"text": "notes \\\n in \\a\\n"}', {"text": "notes \n in a\n"}),
        ('{"parts": [{"text": "one\ntwo, {three: 3,}"},\n],\n}', {"parts": [{"text": "one\ntwo, {three: 3,}"}]}),
    ],
)
def test_bodies_are_read_as_people_write_them(body, value):
    """The cookbook's calls of curl are written so."""
    assert decode(body.encode()) == value


@pytest.mark.parametrize("body", ["{'a': 'b}", "{a b: 1}", "[1,,2]", "{,}x", "{a: b}", "[1 2]", "'a' 'b'", "{'a': \"b}", "[,"])
def test_what_is_not_even_that_is_refused(body):
    with pytest.raises(ApiError, match="the body is not JSON"):
        decode(body.encode())


def test_only_bodies_that_a_person_may_have_written_are_read_so(monkeypatch):
    monkeypatch.setattr(relaxed, "MOST", 20)
    assert decode(b"{'a': 'some text'}") == {"a": "some text"}
    with pytest.raises(ApiError, match="the body is not JSON"):
        decode(b"{'a': 'some longer text'}")


def test_base64_may_be_broken_into_lines():
    data = bytes(range(256))
    assert parse(Blob, {"mimeType": "a/b", "data": base64.encodebytes(data).decode()})[0].data == data


NAMES = st.sampled_from(
    "contents parts text role inlineData mime_type data fileData functionCall functionResponse args response name id generationConfig "
    "topK temperature seed stopSequences responseModalities responseSchema tools functionDeclarations safetySettings category "
    "threshold thinkingConfig videoMetadata startOffset thought systemInstruction cachedContent".split()
)
WORDS = NAMES | st.text("a:,'\"\\\\ {}[]\n\u00e9", max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, database=None, derandomize=True)
@given(JSON)
def test_any_json_is_read_or_refused_with_a_400(data):
    for kind in (Everything, GenerateContentRequest):
        try:
            message, _ = parse(kind, data)
        except ApiError as error:
            assert error.code == 400
            continue
        json.dumps(to_json(message), allow_nan=True)
        if isinstance(message, GenerateContentRequest):
            assert all(isinstance(m, ResponseModality) for m in message.generation_config.response_modalities)


@settings(deadline=None, database=None, derandomize=True)
@given(JSON)
def test_what_was_read_is_read_the_same_when_written_again(data):
    try:
        message, _ = parse(Everything, data)
    except ApiError:
        return
    assert parse(Everything, to_json(message))[0] == message
    assert parse(Everything, to_json(message, numbers=True))[0] == message


def _as_people_write(value, draw):
    """The JSON of a value, with names unquoted, texts in single quotes and a comma at the end wherever `draw` says so."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return "'" + text[1:-1].replace('\\"', '"').replace("'", "\\'") + "'" if draw() else text
    comma = "," if draw() else ""
    if isinstance(value, list):
        return "[" + ", ".join(_as_people_write(item, draw) for item in value) + (comma if value else "") + "]"
    if isinstance(value, dict):
        names = [name if name.isidentifier() and name.isascii() and draw() else _as_people_write(name, draw) for name in value]
        items = [f"{name} : {_as_people_write(item, draw)}" for name, item in zip(names, value.values(), strict=True)]
        return "{" + ", ".join(items) + (comma if value else "") + "}"
    return json.dumps(value)


@settings(deadline=None, database=None, derandomize=True)
@given(st.recursive(WORDS | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner), max_leaves=12), st.randoms())
def test_any_value_as_people_write_it_is_read(value, random):
    assert decode(_as_people_write([value], lambda: random.random() < 0.5).encode()) == [value]
