"""Contents from loose parts, and documents to JSON lines and back."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from pollux.content import (
    Audio,
    Content,
    Document,
    FunctionCall,
    FunctionResponse,
    Image,
    Text,
    Video,
    read_jsonl,
    to_contents,
    write_jsonl,
)
from pollux.media import MediaError, VideoArray

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def write_lines(path: Path, *lines) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_string_is_text_even_if_it_looks_like_a_path():
    assert to_contents("cat.png") == (Content("user", (Text("cat.png"),)),)


def test_paths_become_the_part_of_their_extension():
    (content,) = to_contents([Path("a.JPG"), Path("b.flac"), Path("c.webm")])
    assert [type(part) for part in content.parts] == [Image, Audio, Video]


def test_bare_parts_make_one_user_turn_and_contents_stay_turns():
    answer = Content("model", (Text("a cat"),))
    picture = PIL.Image.fromarray(PIXELS)
    first, second, third = to_contents([picture, "What is this?", answer, "Sure?"])
    assert (first.role, third.role) == ("user", "user") and second is answer
    assert [type(part) for part in first.parts] == [Image, Text] and third.parts == (Text("Sure?"),)
    np.testing.assert_array_equal(first.parts[0].pixels(), PIXELS)


@pytest.mark.parametrize("wrong", [[], 3, [None], Path("notes.xyz"), PIXELS, ["a", ["b"]]])
def test_what_is_no_content_is_refused(wrong):
    with pytest.raises(ValueError):
        to_contents(wrong)


def test_a_content_refuses_unknown_roles_and_things_that_are_no_parts():
    with pytest.raises(ValueError, match="assistant"):
        Content("assistant", (Text("x"),))
    with pytest.raises(ValueError, match="str"):
        Content("user", ("x",))


def test_parts_are_frozen_and_hashable():
    parts = {Text("x"), Image("a.png"), Audio("a.wav"), Video("a.mp4"), FunctionCall("f", {"x": [1]}), FunctionResponse("f", {"y": {}})}
    assert len(parts) == 6 and FunctionCall("f", {"x": [1]}) in parts and FunctionCall("f", {"x": [2]}) not in parts
    with pytest.raises(dataclasses.FrozenInstanceError):
        Text("x").text = "y"


def test_documents_with_branches_calls_and_align_survive_a_file(tmp_path):
    documents = [
        Document((Content("", (Text("two\nlines — ünïcode"),)),)),
        Document(
            (Content("system", (Text("s"),)), Content("user", (Text("u"), FunctionCall("add", {"x": 1, "y": [2.5, None]}, "id-1")))),
            ((Content("user", (Text("q1"),)), Content("model", (Text("a1"),))), (Content("model", (Text("a2"),)),)),
            align="the same in words",
        ),
        Document((Content("tool", (FunctionResponse("add", {"sum": 3}),)),), align=""),
    ]
    write_jsonl(tmp_path / "d.jsonl", documents, tmp_path / "media")
    assert list(read_jsonl(tmp_path / "d.jsonl")) == documents
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 3


def test_media_in_memory_are_written_beside_the_lines_and_come_back(tmp_path):
    samples = (0.4 * np.sin(np.arange(800) / 9)).astype(np.float32)
    clip = VideoArray(np.stack([PIXELS, 255 - PIXELS, PIXELS // 2]), np.array([0.0, 0.125, 1.0]), samples, 8000)
    encoded = tmp_path / "x.jpg"
    PIL.Image.fromarray(PIXELS).save(encoded)
    parts = (Image(PIXELS), Image(PIL.Image.fromarray(255 - PIXELS)), Image(encoded.read_bytes()), Audio(samples, 8000), Video(clip))
    path = tmp_path / "set" / "d.jsonl"
    write_jsonl(path, [Document((Content("user", parts),))], tmp_path / "set" / "media")
    sources = [next(iter(part.values())) for part in json.loads(path.read_text())["contents"][0]["parts"]]
    assert all(source.startswith("media/") for source in sources) and {Path(source).suffix for source in sources} >= {
        ".png",
        ".jpg",
        ".wav",
    }

    (path.parent).rename(tmp_path / "moved")
    (document,) = read_jsonl(tmp_path / "moved" / "d.jsonl")
    first, second, third, sound, video = document.contents[0].parts
    np.testing.assert_array_equal(first.pixels(), PIXELS)
    np.testing.assert_array_equal(second.pixels(), 255 - PIXELS)
    np.testing.assert_array_equal(third.pixels(), Image(encoded).pixels())
    np.testing.assert_allclose(sound.samples(8000), samples, atol=1e-4)
    frames, times = video.frames(8, 64)
    np.testing.assert_array_equal(frames, np.stack([PIXELS] + [255 - PIXELS] * 7 + [PIXELS // 2]))
    np.testing.assert_allclose(times, np.arange(9) / 8)
    np.testing.assert_allclose(video.samples(8000), samples, atol=1e-4)


def test_media_in_files_stay_where_they_are_and_are_named_relative_to_the_lines(tmp_path):
    (tmp_path / "pictures").mkdir()
    PIL.Image.fromarray(PIXELS).save(tmp_path / "pictures" / "a.png")
    url = "https://example.org/b.mp4"
    document = Document((Content("", (Image(tmp_path / "pictures" / "a.png"), Video(url))),))
    write_jsonl(tmp_path / "lines" / "d.jsonl", [document], tmp_path / "media")
    assert json.loads((tmp_path / "lines" / "d.jsonl").read_text())["contents"][0]["parts"] == [
        {"image": "../pictures/a.png"},
        {"video": url},
    ]
    (read,) = read_jsonl(tmp_path / "lines" / "d.jsonl")
    np.testing.assert_array_equal(read.contents[0].parts[0].pixels(), PIXELS)
    assert not (tmp_path / "media").exists()


def test_a_list_of_parts_alone_is_running_text(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", {"parts": [{"text": "a"}, {"image": "b.png"}]}, "", {"parts": []})
    first, second = read_jsonl(path)
    assert first.contents[0].role == "" and first.contents[0].parts[0] == Text("a")
    assert Path(first.contents[0].parts[1].source) == tmp_path / "b.png" and second.contents == (Content("", ()),)


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("{not json", ""),
        ("[1]", "object"),
        ({}, "contents"),
        ({"parts": [{"text": "x"}], "branch": []}, "branch"),
        ({"contents": [], "title": "x"}, "title"),
        ({"contents": {}}, "list"),
        ({"contents": [{"role": "user", "parts": [], "name": "x"}]}, "name"),
        ({"contents": [{"parts": []}]}, "role"),
        ({"contents": [{"role": "bot", "parts": []}]}, "bot"),
        ({"contents": [], "branches": [{"role": "user", "parts": []}]}, "branch"),
        ({"contents": [], "align": 3}, "align"),
        ({"parts": ["x"]}, "part"),
        ({"parts": [{"text": 3}]}, "text"),
        ({"parts": [{"picture": "a.png"}]}, "picture"),
        ({"parts": [{"text": "x", "image": "a.png"}]}, "part"),
        ({"parts": [{"function_call": {"name": "f", "args": {}, "arguments": {}}}]}, "arguments"),
        ({"parts": [{"function_call": {"name": "f", "args": [1]}}]}, "args"),
        ({"parts": [{"function_response": {"name": "f"}}]}, "response"),
    ],
)
def test_a_bad_line_is_one_error_with_file_and_line(tmp_path, line, complaint):
    path = write_lines(tmp_path / "d.jsonl", {"parts": [{"text": "fine"}]}, line)
    with pytest.raises(ValueError, match=rf"d\.jsonl, line 2: .*{complaint}"):
        list(read_jsonl(path))


def test_media_in_memory_have_no_json_of_their_own():
    with pytest.raises(ValueError, match="write_jsonl"):
        Document((Content("user", (Image(PIXELS),)),)).to_json()


def test_a_missing_medium_is_reported_by_name_when_it_is_decoded(tmp_path):
    (document,) = read_jsonl(write_lines(tmp_path / "d.jsonl", {"parts": [{"image": "gone.png"}]}))
    with pytest.raises(MediaError, match="gone.png"):
        document.contents[0].parts[0].pixels()
