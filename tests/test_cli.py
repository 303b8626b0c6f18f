"""The `pollux` command: every verb explains itself, a mistake is one line, and single fields of a recipe can be overridden."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import PIL.Image
import pytest

import pollux
from pollux.cli import VERBS, main
from pollux.commands import quickstart
from pollux.commands.chat import Terminal
from pollux.commands.data import Task
from pollux.commands.pictures import preview
from pollux.commands.train import load_recipe, parse
from pollux.content import Image, Text, read_jsonl
from pollux.data.batches import Batches
from pollux.data.mixture import SourceConfig
from pollux.data.world import TASKS
from pollux.recipes import trained_codec
from pollux.tokens.codec import Codec, CodecConfig, CodecTraining
from pollux.tokens.codec.model import init
from pollux.tokens.vocabulary import Vocabulary
from pollux.train import metrics

CAPACITIES = ("rows", "row_length", "targets_per_row", "soft_per_batch", "seed")
ACTIONS = {"tokenizer": ["train"], "codec": ["train"], "keys": ["add"]}


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of one command line."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def test_the_installed_command_lists_all_verbs():
    shown = subprocess.run([sys.executable, "-m", "pollux.cli"], capture_output=True, text=True, check=True).stdout
    assert all(f"  {verb} " in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example_and_a_sentence_for_each_flag(verb, capsys):
    code, out, _ = run(capsys, verb, *ACTIONS.get(verb, []), "--help")
    assert code == 0
    assert f"Example: pollux {verb}" in out
    flags = "".join(line.strip("│ \n") + " " for line in out.splitlines() if line.startswith("│"))
    for flag in re.split(r"(?= --[a-z])", flags)[1:]:
        assert re.search(r"[a-z]\. (\(|$)|show this help", flag), flag


def test_an_unknown_verb_is_one_line_and_code_2(capsys):
    code, out, err = run(capsys, "trian")
    assert (code, out) == (2, "")
    assert err.startswith("pollux: there is no verb 'trian'") and err.count("\n") == 1


def test_a_users_mistake_is_one_line_and_code_2(capsys):
    code, out, err = run(capsys, "model", "nano-9")
    assert (code, out) == (2, "")
    assert "nano-9" in err and "nano-1" in err and err.count("\n") == 1


def test_a_mistake_shows_its_traceback_on_request(capsys, monkeypatch):
    monkeypatch.setenv("POLLUX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="nano-9"):
        main(["model", "nano-9"])


def test_model_prints_parts_that_sum_to_the_parameters(capsys):
    code, out, _ = run(capsys, "model", "tiny")
    assert code == 0
    numbers = {line[:18].strip(): int(line[18:36].replace(",", "")) for line in out.splitlines() if line.startswith("  ")}
    assert numbers.pop("parameters") == sum(numbers.values())
    assert "FLOPs per token" in out and "KV bytes per token" in out


def test_equal_seeds_give_equal_hashes_and_other_seeds_others(tmp_path, capsys):
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(capsys, "model", "tiny", "--random", tmp_path / name, "--seed", seed)[0] == 0
        hashes.append(run(capsys, "model", tmp_path / name, "--hash")[1].strip())
    assert len(hashes[0]) == 64
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_trained_tokenizer_reads_back_what_it_was_trained_on(tmp_path, capsys):
    (tmp_path / "notes.md").write_text("the red star is left of the blue star\n" * 20)
    code, out, _ = run(capsys, "tokenizer", "train", tmp_path, "--out", tmp_path / "tokenizer", "--vocab-size", 300)
    assert code == 0, out
    vocabulary = Vocabulary.load(tmp_path / "tokenizer")
    assert vocabulary.size <= 300
    ids = vocabulary.encode_text("a red star ☆")
    assert vocabulary.decode(ids) == "a red star ☆"
    assert len(vocabulary.encode_text("the red star is left of")) < 12


def test_a_tokenizer_needs_files(tmp_path, capsys):
    code, _, err = run(capsys, "tokenizer", "train", tmp_path, "--out", tmp_path / "tokenizer")
    assert code == 2 and "no text files" in err


def test_train_overrides_only_the_fields_that_were_given():
    recipe = load_recipe("smoke")()
    given = parse(["smoke", "--out", "here", "--steps", "7", "--model.d-model", "64", "--data.sources.1.weight", "0.5"])
    speech = dataclasses.replace(recipe.data.sources[1], weight=0.5)
    data = dataclasses.replace(recipe.data, sources=(recipe.data.sources[0], speech, *recipe.data.sources[2:]))
    model = dataclasses.replace(recipe.model, d_model=64)
    assert given.config == dataclasses.replace(recipe, steps=7, model=model, data=data)
    assert (given.out, given.resume) == (Path("here"), False)


def test_train_says_which_value_a_field_refuses(capsys):
    code, _, err = run(capsys, "train", "smoke", "--out", "here", "--rows", "0")
    assert code == 2 and "rows 0 must be at least 1" in err


def test_a_recipe_that_needs_a_flag_explains_it_before_it_is_given(capsys):
    code, out, _ = run(capsys, "train", "folder", "--help")
    assert code == 0 and "--folder PATH" in out and "--vocab-size INT" in out and "every field" in out


def test_the_folder_recipe_reads_the_folder_and_learns_its_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.md").write_text("a heron stands in the reeds\n" * 50)
    PIL.Image.new("RGB", (20, 10)).save(tmp_path / "mine" / "heron.png")
    (tmp_path / "mine" / "heron.txt").write_text("a heron")
    config = parse(["folder", "--folder", "mine", "--out", "here"]).config
    vocabulary = Vocabulary.load(config.vocabulary)
    assert config.model.vocab_size == vocabulary.size
    assert len(vocabulary.encode_text(" heron")) == 1
    batch = next(iter(Batches(config.data, config.tokens, vocabulary, **{name: getattr(config, name) for name in CAPACITIES}, prefetch=0)))
    assert (batch.inputs.soft["image"].index < config.rows * config.row_length).sum() > 0


def test_a_tokenizer_is_kept_for_one_text_and_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / parent / "notes" for parent in ("here", "there")]
    for folder, word in zip(folders, ("heron", "gannet"), strict=True):
        folder.mkdir(parents=True)
        (folder / "a.md").write_text(f"a {word} stands in the reeds\n" * 50)

    def vocabulary(folder, size=4096):
        config = load_recipe("folder")(folder, vocab_size=size)
        return config.vocabulary, Vocabulary.load(config.vocabulary)

    (path, first), (_, other), (_, small) = vocabulary(folders[0]), vocabulary(folders[1]), vocabulary(folders[0], 280)
    assert len(first.encode_text(" heron")) == len(other.encode_text(" gannet")) == 1 < len(other.encode_text(" heron"))
    assert small.size == 280 < first.size
    assert vocabulary(folders[0])[0] == path
    (folders[0] / "a.md").write_text("a gull stands in the reeds\n" * 50)
    assert len(vocabulary(folders[0])[1].encode_text(" gull")) == 1


def test_a_codec_is_trained_once_for_equal_settings_and_never_overwritten(tmp_path):
    def pictures():
        trained.append(1)
        while True:
            yield np.zeros((2, 48, 48, 3), np.uint8)

    def codec(steps=1, about="black"):
        settings = CodecConfig(hidden=4), CodecTraining(steps=steps)
        return trained_codec(tmp_path / "codec", pictures, about, *settings, lambda progress: None)[0]

    trained: list[int] = []
    assert codec() == codec() and len(trained) == 1
    assert len({codec(), codec(steps=2), codec(about="grey")}) == len(trained) == len(list(tmp_path.iterdir())) == 3


def test_tokens_counts_add_up(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("12345")
    PIL.Image.new("RGB", (32, 48)).save(tmp_path / "b.png")
    code, out, _ = run(capsys, "tokens", tmp_path / "a.txt", tmp_path / "b.png")
    header, text, image, total = (line.split() for line in out.splitlines())
    assert code == 0
    rows = [dict(zip(header, map(int, row[1:]), strict=True)) for row in (text, image, total)]
    assert rows[0]["text"] == 5 + 2  # and <bos>, <eos>
    assert rows[1]["image"] == 2 * 3 + 2  # 16-pixel patches and the markers
    assert rows[2] == {name: rows[0][name] + rows[1][name] for name in header}
    assert all(row["all"] == sum(row.values()) - row["all"] for row in rows)


def test_tokens_reads_typescript_as_text(tmp_path, capsys):
    (tmp_path / "page.ts").write_text("let x = 1\n")
    code, out, _ = run(capsys, "tokens", tmp_path / "page.ts")
    assert code == 0 and int(dict(zip(*(line.split()[-6:] for line in out.splitlines()), strict=True))["text"]) == 10 + 2


def test_tokens_names_a_file_that_is_neither_medium_nor_text(tmp_path, capsys):
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe\x00")
    code, _, err = run(capsys, "tokens", tmp_path / "x.bin")
    assert code == 2 and "x.bin" in err and err.count("\n") == 1


def test_data_shows_truth_of_the_world_and_writes_documents_that_read_back(tmp_path, capsys):
    code, out, _ = run(capsys, "data", "world", "--task", "picture", "draw", "--count", 3, "--show", 2, "--out", tmp_path)
    assert code == 0
    assert "user: [image]" in out and "model: [image]" in out
    documents = list(read_jsonl(tmp_path / "documents.jsonl"))
    assert len(documents) == 4
    assert documents[0].contents[0].parts[0].pixels().shape == (48, 48, 3)


def test_every_task_of_the_world_can_be_shown(capsys):
    assert get_args(Task) == TASKS
    assert run(capsys, "data", "world", "--task", "conversation", "--count", 1)[0] == 0


def test_data_lists_files_that_are_left_out(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.png").write_bytes(b"no picture")
    code, out, _ = run(capsys, "data", tmp_path)
    assert code == 0 and "left out" in out and "b.png" in out and "documents: 1;" in out


class Echo:
    """Stands in for generate.Chat: answers with what it was sent."""

    def __init__(self, model=None):
        self.model, self.contents = model, []

    def stream(self, contents, **settings):
        self.contents.append(contents)
        if "draw" in contents.parts[-1].text:
            yield Image(np.full((4, 4, 3), 7, np.uint8))
        yield Text("done")


def test_chat_sends_attached_files_once_before_the_text(tmp_path, capsys):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    terminal = Terminal(Echo(), tmp_path)
    for line in (f"/image {tmp_path / 'a.png'}", "what is this", "and now"):
        assert terminal.obey(line)
    first, second = terminal.conversation.contents
    assert [type(part).__name__ for part in first.parts] == ["Image", "Text"]
    assert [type(part).__name__ for part in second.parts] == ["Text"]
    assert capsys.readouterr().out == "done\ndone\n"


def test_chat_saves_drawings_under_names_that_are_free(tmp_path, capsys):
    terminal = Terminal(Echo(), tmp_path)
    terminal.obey("/draw a star")
    terminal.obey("/draw a ring")
    assert [contents.parts[0].text for contents in terminal.conversation.contents] == ["draw a star", "draw a ring"]
    out = capsys.readouterr().out
    for name in ("drawing-1.png", "drawing-2.png"):
        assert str(tmp_path / name) in out
        assert np.asarray(PIL.Image.open(tmp_path / name)).max() == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [("/image nowhere.png", "no file 'nowhere.png'"), ("/image ~nobody-here/x.png", "no file '~nobody"), ("/dance", "no command /dance")],
)
def test_chat_refuses_what_it_cannot_do(line, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Terminal(Echo(), tmp_path).obey(line)


def test_chat_ends_on_quit(tmp_path):
    assert Terminal(Echo(), tmp_path).obey("/quit") is False


def test_a_preview_shows_two_pixels_a_character():
    picture = PIL.Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]], np.uint8))
    assert preview(picture) == "\x1b[38;2;1;2;3m\x1b[48;2;7;8;9m▀\x1b[38;2;4;5;6m\x1b[48;2;10;11;12m▀\x1b[0m"
    assert all(line.count("▀") == 48 for line in preview(PIL.Image.new("RGB", (200, 100))).splitlines())


@pytest.mark.slow
def test_quickstart_is_stopped_and_continued_and_ends_with_a_model_and_a_report_of_every_figure(tmp_path, monkeypatch, capsys):
    shape = CodecConfig(form_levels=(4, 4), colour_levels=(4, 4), hidden=8)
    codec = Codec(shape, init(shape, seed=0))
    codec.save(tmp_path / "codec")

    def recipe(minutes, work):
        smoke = load_recipe("smoke")()
        model = dataclasses.replace(smoke.model, vocab_size=smoke.model.vocab_size + sum(codec.levels))
        data = dataclasses.replace(smoke.data, sources=(*smoke.data.sources, SourceConfig("world", "draw")))
        return dataclasses.replace(smoke, model=model, data=data, codec=str(tmp_path / "codec"), steps=6, log_every=1)

    def write_and_stop(log, line):
        write(log, line)
        if line["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    write = metrics.Log.write
    monkeypatch.setattr(quickstart, "load_recipe", lambda name: recipe)
    (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(metrics.Log, "write", write_and_stop)
        code, _, err = run(capsys, "quickstart", "--out", tmp_path / "run", "--items", 16)
    assert code == 130 and "is saved, --resume continues" in err
    assert (tmp_path / "run-1").is_dir()  # what was there before
    stopped = metrics.read(tmp_path / "run")
    assert 2 <= stopped[-1]["step"] < 6
    code, out, _ = run(capsys, "quickstart", "--out", tmp_path / "run", "--items", 16, "--resume")
    assert code == 0, out
    assert [line["step"] for line in metrics.read(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert metrics.read(tmp_path / "run")[: len(stopped)] == stopped
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    figures = {"caption_exact", "caption_exact_seen", "caption_exact_shuffled", "vqa_exact", "speech_wer", "video_exact", "draw_correct"}
    assert {"minutes", "parameters", "chance", "vqa_by_type", "video_by_type"} | figures <= set(report)
    for page in ("report.html", "training.html"):
        assert "<html" in (tmp_path / "run" / page).read_text()
    assert pollux.load(tmp_path / "run" / "model").sampling.temperature == 0
