"""A real little folder becomes documents; files that are no good are named, and end the run or are left out as asked."""

import logging

import av
import numpy as np
import PIL.Image
import pytest
import soundfile

from pollux.content import Audio, Content, Document, Image, Text, Video
from pollux.data.folder import FolderConfig, FolderSource, Prompts, cut
from pollux.data.mixture import DataConfig, SourceConfig, open_mixture
from pollux.media import MediaError

ALL = FolderConfig(held_out=0)


def picture(path, value=0):
    PIL.Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(path)


def clip(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for value in (0, 80, 160, 240):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8), format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def folder(tmp_path):
    """One of everything, in no particular order."""
    root = tmp_path / "mine"
    (root / "sub" / ".hidden").mkdir(parents=True)
    (root / "notes.md").write_text("# Title\n\nBody.\n")
    (root / "sub" / "code.py").write_text("print('hi')\n")
    picture(root / "cat.png", 200)
    (root / "cat.txt").write_text("a grey cat \n")
    soundfile.write(root / "talk.wav", np.sin(np.arange(1600) / 8).astype(np.float32), 16_000)
    (root / "talk.txt").write_text("hello there")
    clip(root / "clip.mp4")
    (root / "clip.txt").write_text("it gets brighter")
    picture(root / "sub" / "fig.png", 7)
    (root / "pages.jsonl").write_text(
        '{"parts": [{"text": "see "}, {"image": "sub/fig.png"}]}\n\n'
        '{"contents": [{"role": "user", "parts": [{"text": "hi"}]}, {"role": "model", "parts": [{"text": "yes"}]}]}\n'
    )
    (root / ".secret.txt").write_text("no")
    (root / "sub" / ".hidden" / "also.txt").write_text("no")
    return root


def documents(source: FolderSource) -> list[Document]:
    return [source.document(i) for i in range(source.length)]


def texts(document: Document) -> list[str]:
    return [part.text for content in document.contents for part in content.parts if isinstance(part, Text)]


def test_every_kind_of_file_becomes_the_document_it_should(folder):
    source = FolderSource(folder, ALL)
    by_file = {}
    for index in range(source.length):
        by_file.setdefault(source.origin(index).removeprefix(f"{folder}/"), []).append(source.document(index))
    assert list(by_file) == ["cat.png", "clip.mp4", "notes.md", "pages.jsonl, line 1", "pages.jsonl, line 3", "sub/code.py", "talk.wav"]
    assert by_file["notes.md"] == [Document((Content("", (Text("# Title\n\nBody.\n"),)),))]
    assert texts(by_file["sub/code.py"][0]) == ["print('hi')\n"]
    for name, kind, prompt, answer in (
        ("cat.png", Image, "caption", "a grey cat"),
        ("talk.wav", Audio, "transcribe", "hello there"),
        ("clip.mp4", Video, "describe", "it gets brighter"),
    ):
        (document,) = by_file[name]
        user, model = document.contents
        assert (user.role, model.role) == ("user", "model")
        assert isinstance(user.parts[0], kind) and user.parts[1:] == (Text(prompt),) and model.parts == (Text(answer),)
    assert texts(by_file["pages.jsonl, line 3"][0]) == ["hi", "yes"]
    assert not source.left_out


def test_media_are_read_from_where_the_documents_say(folder):
    source = FolderSource(folder, ALL)
    by_file = {source.origin(i).removeprefix(f"{folder}/"): source.document(i) for i in range(source.length)}
    assert (by_file["cat.png"].contents[0].parts[0].pixels() == 200).all()
    assert (by_file["pages.jsonl, line 1"].contents[0].parts[1].pixels() == 7).all()
    assert len(by_file["talk.wav"].contents[0].parts[0].samples(16_000)) == 1600
    assert len(by_file["clip.mp4"].contents[0].parts[0].frames(4.0, 10)[0]) == 4


def test_prompts_can_be_chosen_or_left_out(folder):
    source = FolderSource(folder, FolderConfig(prompts=Prompts(image="", audio="write it down"), held_out=0))
    said = {source.origin(i).rsplit("/")[-1]: texts(source.document(i)) for i in range(source.length)}
    assert said["cat.png"] == ["a grey cat"] and said["talk.wav"] == ["write it down", "hello there"]


def test_draw_also_asks_for_the_picture_of_a_caption(folder):
    source = FolderSource(folder, FolderConfig(draw=True, held_out=0))
    caption, request = [source.document(i) for i in range(source.length) if source.origin(i).endswith("cat.png")]
    assert isinstance(caption.contents[0].parts[0], Image)
    assert request.contents[0] == Content("user", (Text("draw a grey cat"),))
    assert request.contents[1].role == "model" and isinstance(request.contents[1].parts[0], Image)


def test_the_order_does_not_depend_on_when_files_were_made(folder, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    for file in sorted(folder.rglob("*"), reverse=True):
        if file.is_file():
            (again / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (again / file.relative_to(folder)).write_bytes(file.read_bytes())
    first, second = FolderSource(folder, ALL), FolderSource(again, ALL)
    assert [texts(d) for d in documents(first)] == [texts(d) for d in documents(second)]


def test_a_long_text_is_cut_without_losing_a_byte(tmp_path):
    text = "\n\n".join(f"Absatz {i}: " + "größer weiter schöner " * (i % 7) for i in range(60)) + "x" * 300 + "€" * 300
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    found = [texts(d)[0] for d in documents(FolderSource(tmp_path, FolderConfig(max_text_bytes=200, held_out=0)))]
    assert "".join(found) == text and max(len(piece.encode()) for piece in found) <= 200
    assert sum(piece.endswith("\n\n") for piece in found) > len(found) / 2


def test_cuts_prefer_paragraphs_to_lines_to_words():
    def pieces(text):
        return [text.encode()[start:end].decode() for start, end in cut(text.encode(), 20)]

    assert pieces("one line\nof two\n\nafter that") == ["one line\nof two\n\n", "after that"]
    assert pieces("line one is\nthis, two that") == ["line one is\n", "this, two that"]
    assert pieces("only words and no line") == ["only words and no ", "line"]
    assert pieces("a\r\nparagraph\r\n\r\nnext one") == ["a\r\nparagraph\r\n\r\n", "next one"]


def test_the_held_out_files_and_the_rest_are_everything_and_share_nothing(tmp_path):
    for i in range(200):
        (tmp_path / f"{i}.md").write_text(f"first {i}\n\n" + "more " * 10)
    config = FolderConfig(held_out=0.3, max_text_bytes=32)
    train = FolderSource(tmp_path, config)
    held_out = train.held_out()
    train_files, held_out_files = ({source.origin(i) for i in range(source.length)} for source in (train, held_out))
    assert not train_files & held_out_files and len(train_files | held_out_files) == 200
    assert 40 < len(held_out_files) < 80


def test_media_that_share_a_caption_are_held_out_together(tmp_path):
    for i in range(40):
        picture(tmp_path / f"{i}.png")
        picture(tmp_path / f"{i}.jpg")
        (tmp_path / f"{i}.txt").write_text(f"number {i}")
    held_out = FolderSource(tmp_path, FolderConfig(held_out=0.5, draw=True)).held_out()
    names = [held_out.origin(i).rsplit(".", 1)[0] for i in range(held_out.length)]
    assert 0 < held_out.length < 160 and all(names.count(name) == 4 for name in names)


def test_media_without_text_are_named_and_said_when_a_run_opens_them(folder, caplog):
    picture(folder / "lonely.png")
    assert FolderSource(folder, ALL).left_out == {str(folder / "lonely.png"): "no text beside it (lonely.txt)"}
    with caplog.at_level(logging.WARNING):
        open_mixture(DataConfig((SourceConfig("folder", path=str(folder)),)), seed=0)
    assert f"1 files of {folder} are left out" in caplog.text and "lonely.png: no text beside it (lonely.txt)" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("bad.md", b"caf\xe9 au lait", "not text in UTF-8"),
        ("cat.txt", b"  \n", "is empty"),
        ("bad.jsonl", b'{"parts": [{"text": "fine"}]}\n{"parts": [\n', "line 2 is not a document"),
        ("bad.jsonl", b'{"parts": [{"picture": "x.png"}]}\n', "line 1"),
    ],
)
def test_a_bad_file_is_named_and_left_out_or_ends_the_run(folder, name, content, sentence):
    (folder / name).write_bytes(content)
    with pytest.raises(MediaError, match=sentence) as raised:
        FolderSource(folder, FolderConfig(bad_files="stop"))
    assert name in str(raised.value)
    source = FolderSource(folder, ALL)
    assert len(source.left_out) == 1 and sentence in " ".join(next(iter(source.left_out.items())))
    assert source.length >= 6


def test_a_bad_line_takes_no_other_line_with_it(tmp_path):
    (tmp_path / "pages.jsonl").write_text('{"parts": [{"text": "one"}]}\nnothing\n{"parts": [{"text": "three"}]}\n')
    source = FolderSource(tmp_path, ALL)
    assert [texts(d) for d in documents(source)] == [["one"], ["three"]]
    assert list(source.left_out) == [f"{tmp_path / 'pages.jsonl'}, line 2"]


@pytest.mark.parametrize("make", [lambda p: p / "missing", lambda p: (p / "file.txt").write_text("x") and p / "file.txt"])
def test_what_is_no_folder_is_refused(tmp_path, make):
    with pytest.raises(ValueError, match="is not a folder"):
        FolderSource(make(tmp_path))


def test_a_folder_without_documents_is_refused(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"\0")
    with pytest.raises(ValueError, match="has no documents"):
        FolderSource(tmp_path)


def test_typescript_is_code_and_not_a_video(tmp_path):
    (tmp_path / "page.ts").write_text("let x = 1\n")
    (tmp_path / "page.txt").write_text("about the page\n")
    (tmp_path / "clip.ts").write_bytes((b"G" + b"\xff" * 187) * 3)
    source = FolderSource(tmp_path, ALL)
    assert [texts(document) for document in documents(source)] == [["let x = 1\n"], ["about the page\n"]]
    assert source.left_out == {str(tmp_path / "clip.ts"): "no text beside it (clip.txt)"}


@pytest.mark.parametrize("wrong", [{"bad_files": "ignore"}, {"held_out": 1.0}, {"max_text_bytes": 3}])
def test_a_wrong_folder_config_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FolderConfig(**wrong)


def test_half_a_character_in_json_lines_is_named_and_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"parts": [{"text": "hello \\ud83d world"}]}\n{"parts": [{"text": "whole \\ud83d\\ude00"}]}\n')
    source = FolderSource(tmp_path, FolderConfig(held_out=0))
    assert [source.document(i).contents[0].parts[0].text for i in range(source.length)] == ["whole \U0001f600"]
    ((name, reason),) = source.left_out.items()
    assert name.endswith("a.jsonl, line 1") and "half a surrogate pair" in reason and "at character 6" in reason
