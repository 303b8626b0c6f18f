"""Contents of requests as the turns that a model reads."""

import base64
import io

import numpy as np
import PIL.Image
import pytest

from pollux.content import Audio, Content, FunctionCall, FunctionResponse, Image, Text, Video
from pollux.media import encode_image
from pollux.serve.content import joined, read_contents, read_system, write_part
from pollux.serve.errors import ApiError
from pollux.serve.fetch import Fetched, FetchLimits
from pollux.serve.server import Server, Settings
from pollux.serve.wire.content import Content as WireContent
from pollux.serve.wire.message import parse

SERVER = Server({})


def turns(*contents, server=SERVER):
    return read_contents(server, [parse(WireContent, content)[0] for content in contents], "contents")


def call(name, number=0, i=""):
    return {"functionCall": {"name": name, "args": {"n": number}} | ({"id": i} if i else {})}


def answered(name, number=0, i=""):
    return {"functionResponse": {"name": name, "response": {"n": number}} | ({"id": i} if i else {})}


def response(name, number):
    return FunctionResponse(name, {"n": number})


def test_turns_keep_their_order_and_roles():
    made = turns(
        {"parts": [{"text": "a"}, {"text": ""}]}, {"role": "model", "parts": [{"text": "b"}]}, {"role": "user", "parts": [{"text": "c"}]}
    )
    assert made == [Content("user", (Text("a"),)), Content("model", (Text("b"),)), Content("user", (Text("c"),))]


def test_answers_of_functions_are_a_turn_of_their_own_in_the_order_of_the_calls():
    calling = {"role": "model", "parts": [call("f", 1), call("g"), call("f", 2)]}
    made = turns(calling, {"parts": [answered("g", 10), answered("f", 11), answered("f", 12), {"text": "well?"}]})
    assert made[0] == Content("model", (FunctionCall("f", {"n": 1}), FunctionCall("g", {"n": 0}), FunctionCall("f", {"n": 2})))
    assert made[1:] == [Content("tool", (response("f", 11), response("g", 10), response("f", 12))), Content("user", (Text("well?"),))]


def test_an_id_says_which_call_is_answered_and_what_its_function_is_called():
    calling = {"role": "model", "parts": [call("f", 1, "x"), call("f", 2, "y")]}
    (tool,) = turns(calling, {"role": "function", "parts": [answered("f", 12, "y"), answered("", 11, "x")]})[1:]
    assert tool.parts == (response("f", 11), response("f", 12))


def test_answers_without_calls_and_calls_of_users_are_read_as_they_come():
    assert turns({"parts": [answered("f", 1), answered("g", 2)]}) == [Content("tool", (response("f", 1), response("g", 2)))]
    assert turns({"parts": [{"text": "a"}, call("f")]}) == [Content("user", (Text("a"),)), Content("model", (FunctionCall("f", {"n": 0}),))]
    with pytest.raises(ApiError, match=r"contents\[0\].parts\[0\].functionResponse.name is missing"):
        turns({"parts": [answered("", 1, "z")]})


def test_media_stay_with_the_answer_that_brought_them():
    medium = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    g = {"functionResponse": {"name": "g", "response": {}, "parts": [medium]}}
    (tool,) = turns({"role": "model", "parts": [call("f"), call("g")]}, {"parts": [g, answered("f", 1)]})[1:]
    assert tool.parts[:2] == (response("f", 1), FunctionResponse("g", {})) and isinstance(tool.parts[2], Image)


def test_thoughts_and_signatures_are_not_shown_to_the_model_again():
    parts = [{"text": "hm", "thought": True}, {"text": "yes", "thoughtSignature": "AAAA"}, {"thought": True}]
    assert turns({"role": "model", "parts": parts}) == [Content("model", (Text("yes"),))]


def test_code_and_its_output_are_read_as_text():
    run = {"codeExecutionResult": {"outcome": "OUTCOME_FAILED", "output": "no"}}
    (turn,) = turns({"role": "model", "parts": [{"executableCode": {"language": "PYTHON", "code": "f()"}}, run]})
    assert turn.parts == (Text("```python\nf()\n```\n"), Text("```\nOUTCOME_FAILED\nno\n```\n"))


@pytest.mark.parametrize(
    ("mime", "kind"),
    [
        ("image/jpeg", Image),
        ("audio/mp3", Audio),
        ("application/ogg", Audio),
        ("video/mp4", Video),
        *[(mime, Text) for mime in ("text/plain", "text/markdown", "text/html", "text/csv; charset=utf-8", "application/json")],
    ],
)
def test_the_mime_type_says_what_a_medium_is(mime, kind):
    data = base64.b64encode(b"[1]").decode()
    ((part,),) = [turn.parts for turn in turns({"parts": [{"inlineData": {"mimeType": mime, "data": data}}]})]
    assert isinstance(part, kind) and (part.text if kind is Text else part.source.decode()) == "[1]"


def test_a_pdf_is_a_picture_for_each_page():
    colours = [(200, 30, 40), (20, 160, 60)]
    first, second = [PIL.Image.new("RGB", (60, 40), colour) for colour in colours]
    file = io.BytesIO()
    first.save(file, "PDF", save_all=True, append_images=[second])
    pdf = {"inlineData": {"mimeType": "application/pdf", "data": base64.b64encode(file.getvalue()).decode()}}
    (turn,) = turns({"parts": [{"text": "a"}, pdf, {"text": "b"}]})
    assert [type(part) for part in turn.parts] == [Text, Image, Image, Text]
    for part, colour in zip(turn.parts[1:3], colours, strict=True):
        assert np.abs(part.pixels().mean((0, 1)) - colour).max() < 3  # as JPEG keeps it
    answer = {"functionResponse": {"name": "scan", "response": {}, "parts": [pdf]}}
    (tool,) = turns({"role": "model", "parts": [call("scan")]}, {"parts": [answer]})[1:]
    assert [type(part) for part in tool.parts] == [FunctionResponse, Image, Image]


def test_a_section_of_a_video_with_its_own_rate():
    medium = {"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}}
    ((part,),) = [t.parts for t in turns({"parts": [medium | {"videoMetadata": {"startOffset": "1.5s", "endOffset": "4s", "fps": 2}}]})]
    assert (part.start, part.end, part.fps) == (1.5, 4.0, 2.0)
    for wrong in ({"startOffset": "4s", "endOffset": "1s"}, {"startOffset": "-1s"}, {"fps": 0.0}, {"fps": 100}):
        with pytest.raises(ApiError, match="videoMetadata"):
            turns({"parts": [medium | {"videoMetadata": wrong}]})


def test_a_url_is_fetched_if_the_operator_lets_it(monkeypatch):
    asked = []

    def fetched(url, limits):
        asked.append((url, limits))
        return Fetched(b"a text", "text/plain", url)

    monkeypatch.setattr("pollux.serve.media.fetch", fetched)
    limits = FetchLimits(max_bytes=5)
    part = {"fileData": {"fileUri": "https://example.org/a.txt"}}
    (turn,) = turns({"parts": [part]}, server=Server({}, settings=Settings(fetch=limits)))
    assert turn.parts == (Text("a text"),) and asked == [("https://example.org/a.txt", limits)]


def test_a_system_instruction_may_name_any_role():
    said = parse(WireContent, {"role": "nobody", "parts": [{"text": "be brief"}]})[0]
    assert read_system(SERVER, said, "systemInstruction") == [Content("system", (Text("be brief"),))]


def test_turns_of_one_role_in_a_row_can_be_joined():
    a, b, c = Text("a"), Text("b"), Text("c")
    made = joined([Content("user", (a,)), Content("user", (b, c)), Content("model", (a,)), Content("user", (b,))])
    assert made == [Content("user", (a, b, c)), Content("model", (a,)), Content("user", (b,))]


def test_parts_of_answers():
    pixels = np.zeros((2, 3, 3), np.uint8)
    assert write_part(Text("a")).text == "a"
    assert write_part(Image(pixels)).inline_data.data == encode_image(pixels)
    written = write_part(FunctionCall("f", {"a": [1]}, "x")).function_call
    assert (written.name, written.args, written.id) == ("f", {"a": [1]}, "x")
