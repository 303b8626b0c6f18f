"""Whole runs on a folder of text: killed, stopped, diverged and resumed ones against one that nothing disturbed."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import short_run

import pollux
from pollux.cli import main
from pollux.content import Content, Document, Image, Text
from pollux.data.batches import Batches
from pollux.data.folder import FolderConfig, FolderSource
from pollux.data.mixture import DataConfig, SourceConfig
from pollux.data.world import WorldConfig
from pollux.model.folder import load_params
from pollux.model.params import init
from pollux.tokens.config import AudioTokens, TokensConfig
from pollux.tokens.interleave import encode
from pollux.tokens.pack import single
from pollux.tokens.sequence import Batch
from pollux.tokens.vocabulary import Vocabulary
from pollux.train import loop, metrics, objective, schedule
from pollux.train.config import OptimizerConfig
from pollux.train.divergence import BAD_BATCH, Diverged, fault
from pollux.train.held_out import HeldOut
from pollux.train.reading import STATES, replay
from pollux.train.samples import TEXT_TOKENS


@pytest.fixture(scope="module")
def undisturbed(home):
    """OUT of a run from start to end."""
    loop.run(short_run.config(home), home / "undisturbed")
    return home / "undisturbed"


def untimed(out: Path) -> list[dict]:
    """The log without what it says about the machine."""
    times = ("seconds", "tokens_per_second", "flop_utilisation")
    return [{name: value for name, value in line.items() if name not in times} for line in metrics.read(out)]


def checkpoint_steps(out: Path) -> list[int]:
    return sorted(int(folder.name) for folder in (out / "checkpoints").iterdir() if folder.name.isdigit())


def steps_of(config, home) -> list[list[Batch]]:
    """The batches of each step of a run, made afresh."""
    capacities = dict(rows=config.rows, row_length=config.row_length, targets_per_row=config.targets_per_row, soft_per_batch={})
    batches = iter(Batches(config.data, config.tokens, Vocabulary.load(home), **capacities, prefetch=0))
    return [[next(batches) for _ in range(config.accumulation)] for _ in range(config.steps)]


def assert_same_batch(one: Batch, expected: list[Batch]):
    for i, batch in enumerate(expected):
        jax.tree.map(lambda saved, made, i=i: np.testing.assert_array_equal(saved[i], made), one, batch)


def assert_saved(path: Path, expected: list[Batch]):
    """A file of arrays holds the stacked batches of a step under the names of their fields."""
    with np.load(path) as arrays:
        for part in ("inputs", "targets"):
            for name, value in vars(getattr(expected[0], part)).items():
                if not isinstance(value, dict):
                    np.testing.assert_array_equal(arrays[f"{part}.{name}"], [getattr(getattr(batch, part), name) for batch in expected])


def at_step(monkeypatch, wanted: int, action):
    """Replace the schedule's factor at one step by what `action` makes of it."""
    factor = schedule.factor
    monkeypatch.setattr(schedule, "factor", lambda config, step, *rest: (action if step == wanted else float)(factor(config, step, *rest)))


def assert_same_run(out: Path, undisturbed: Path):
    assert short_run.hash_of(out / "model") == short_run.hash_of(undisturbed / "model")
    assert untimed(out) == untimed(undisturbed)


def test_a_run_killed_at_a_step_resumes_bit_for_bit(home, undisturbed, tmp_path):
    last_step = int(np.random.default_rng().integers(7, 12))  # step 6 is saved after step 3 is, so one of them is there
    command = [sys.executable, short_run.__file__, str(home), str(tmp_path), str(last_step)]
    killed = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": jax.default_backend()}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "model").exists()
    assert checkpoint_steps(tmp_path)[-1] in range(3, last_step)
    loop.run(short_run.config(home), tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_sigterm_saves_the_step_and_the_run_continues_bit_for_bit(home, undisturbed, tmp_path, monkeypatch):
    def stop(factor):
        signal.raise_signal(signal.SIGTERM)
        return factor

    with monkeypatch.context() as patch:
        at_step(patch, 5, stop)
        with pytest.raises(KeyboardInterrupt, match="step 5 is saved"):
            loop.run(short_run.config(home), tmp_path)
    assert checkpoint_steps(tmp_path)[-1] == 5
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    loop.run(short_run.config(home), tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_a_nan_stops_the_run_and_leaves_the_batch_of_that_step(home, tmp_path, monkeypatch):
    at_step(monkeypatch, 7, lambda factor: float("nan"))
    with pytest.raises(Diverged, match=r"step 8: loss is nan; its batch is in .*bad_batch.npz, .*; --resume repeats the steps from 7 to 8"):
        loop.run(short_run.config(home), tmp_path)
    assert checkpoint_steps(tmp_path)[-1] == 6, "nothing was saved after the last good step"
    config = short_run.config(home)
    assert_saved(tmp_path / BAD_BATCH, steps_of(config, home)[7])


def test_what_any_step_read_can_be_read_again(home, undisturbed):
    made = steps_of(short_run.config(home), home)
    for step in (1, 7, 12):
        assert_same_batch(replay(undisturbed, step)[0], made[step - 1])
    for step in (0, 13):
        with pytest.raises(ValueError, match=f"has no step {step} so far; its first step is 1"):
            replay(undisturbed, step)


def test_a_damaged_log_and_other_data_are_not_called_a_missing_step(undisturbed, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    lines = (out / STATES).read_text().splitlines()
    (out / STATES).write_text("\n".join([*lines[:4], lines[4][:9], *lines[5:]]) + "\n")
    with pytest.raises(ValueError, match=rf"{STATES}, line 5 is damaged: it is not JSON"):
        replay(out, 9)
    (out / STATES).write_text("\n".join([*lines[:9], lines[9].replace('"lengths": [', '"lengths": [1')]) + "\n")
    with pytest.raises(ValueError, match="restore the files or start a new run"):
        replay(out, 5)


def test_a_step_is_spelled_out_and_saved_by_the_command(home, undisturbed, tmp_path, capsys):
    assert main(["data", str(undisturbed), "--step", "7", "--out", str(tmp_path)]) == 0
    assert re.search(r"row 0, document 1: <bos>Number \d+ comes before \d+, and \d+ is its square.<eos>", capsys.readouterr().out)
    assert_saved(tmp_path / "step-7.npz", steps_of(short_run.config(home), home)[6])
    assert main(["data", str(tmp_path), "--step", "7"]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


def test_a_run_ends_with_a_list_of_the_documents_that_it_could_not_use(home, tmp_path, capsys):
    texts = tmp_path / "texts"
    shutil.copytree(home / "texts", texts)
    (texts / "broken.png").write_bytes(b"no picture")
    (texts / "broken.txt").write_text("a caption")
    data = DataConfig((SourceConfig("folder", path=str(texts)),))
    loop.run(short_run.config(home, data=data, steps=8), tmp_path / "run")
    assert re.search(r"documents that could not be used: 1\n    .*broken.png: image .*broken.png is broken", capsys.readouterr().out)


def test_a_loss_far_above_a_uniform_guess_counts_as_divergence(home):
    config = short_run.config(home, divergence=2.0)
    guess = float(np.log(config.model.vocab_size))
    assert fault(config, {"loss": 1.0, "grad_norm": 1.0, "lm": 1.9 * guess}) == ""
    assert "2 times that of a uniform guess" in fault(config, {"loss": 1.0, "grad_norm": 1.0, "lm": 2.1 * guess})
    assert fault(config, {"loss": 1.0, "grad_norm": float("inf"), "lm": 1.0}) == "grad_norm is inf"


def test_only_the_newest_checkpoints_are_kept(undisturbed):
    assert checkpoint_steps(undisturbed) == [9, 12]


def test_the_held_out_loss_is_that_of_each_unread_document_alone(home, undisturbed):
    config = short_run.config(home)
    unread = FolderSource(home / "texts", config.data.folder).held_out()
    losses, targets = [], []
    params = load_params(undisturbed / "model", config.model)
    for index in range(unread.length):
        sequence = encode(unread.document(index), Vocabulary.load(home), config.tokens)
        metrics_of_one = objective.loss(params, config, single(sequence))[1]
        losses.append(float(metrics_of_one["text"]))
        targets.append(float(metrics_of_one["text_targets"]))
    held_out = [line for line in metrics.read(undisturbed) if "held_out_text" in line]
    assert [line["step"] for line in held_out] == [5, 10, 12]
    assert unread.length > 4
    assert held_out[-1]["held_out_text"] == pytest.approx(np.average(losses, weights=targets), rel=1e-4)
    assert held_out[-1]["held_out_text"] < held_out[0]["held_out_text"]


def test_a_run_whose_folder_keeps_nothing_back_says_so_and_has_no_held_out_loss(home, tmp_path, capsys):
    data = DataConfig((SourceConfig("folder", path=str(home / "texts")),), folder=FolderConfig(held_out=0))
    loop.run(short_run.config(home, data=data, steps=2), tmp_path)
    assert not any("held_out_text" in line for line in metrics.read(tmp_path))
    assert "raise --data.folder.held-out" in capsys.readouterr().out


class Kept:
    """A source all of whose documents are held out."""

    bad_files = "skip"

    def __init__(self, *documents):
        self.documents, self.length = documents, len(documents)

    def held_out(self):
        return self

    def document(self, index):
        return self.documents[index]

    def origin(self, index):
        return f"document {index}"


def test_unread_documents_that_are_broken_or_too_large_are_left_out_and_of_many_some_are_taken(home):
    def opened(*documents):
        return HeldOut(short_run.config(home), [Kept(*documents)], Vocabulary.load(home), None)

    text = Document((Content("", (Text("Number 7 comes before 8"),)),))
    broken, too_large = (Document((Content("user", (Image(x),)),)) for x in (b"no picture", np.zeros((4, 4, 3), np.uint8)))
    params = init(short_run.config(home).model, jax.random.key(0))
    assert opened(text, broken, too_large, text).documents == 2
    assert opened(broken).losses(params) == {}
    assert opened(broken, text, too_large).losses(params) == opened(text).losses(params)
    assert 20 < opened(*[text] * 1000).documents < 200


def test_the_exported_model_is_the_averaged_one_with_its_vocabulary(undisturbed, home):
    assert Vocabulary.load(undisturbed / "model").size == Vocabulary.load(home).size
    config = short_run.config(home)
    with loop.closing(loop.Checkpoints(undisturbed / "checkpoints", 2)) as checkpoints:
        state, _ = checkpoints.restore(12, jax.eval_shape(lambda: loop.initial_state(config)))
    assert short_run.hash_params(state.ema) == short_run.hash_of(undisturbed / "model")
    assert short_run.hash_params(state.ema) != short_run.hash_params(state.params)


def test_the_log_has_one_line_per_interval_and_the_page_shows_its_curves(undisturbed):
    lines = [line for line in metrics.read(undisturbed) if "text" in line]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert lines[-1]["text"] < lines[0]["text"]
    assert "draw" not in lines[0], "a loss without targets is not logged"
    page = (undisturbed / "report.html").read_text()
    assert "Text loss, nats a target" in page and page.count("<svg") == page.count("</svg>") >= 5
    assert json.loads((undisturbed / "config.json").read_text())["steps"] == 12


def test_the_page_of_a_finished_run_shows_what_the_model_answers_to_unread_documents(home, tmp_path):
    data = DataConfig((SourceConfig("folder", path=str(home / "texts")),), folder=FolderConfig(held_out=0.2))
    model = loop.run(short_run.config(home, data=data, steps=2, samples=3), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count('<div class="prompt">') == page.count('<div class="answer">') == 3
    unread = FolderSource(home / "texts", data.folder).held_out()
    for index in range(3):
        text = unread.document(index).contents[0].parts[0].text
        prompt = text[: text.rindex(" ", 0, len(text) // 2 + 1)]
        assert f"<p>{prompt}</p>" in page and f"<p>{text[len(prompt) :]}</p>" in page
    answer = pollux.load(model).generate(Content("", (Text(prompt),)), temperature=0, max_output_tokens=TEXT_TOKENS).text
    assert f"<p>{html.escape(answer)}</p>" in page


def test_a_folder_that_holds_a_run_is_not_overwritten(home, undisturbed):
    with pytest.raises(ValueError, match=r"already holds a run \(checkpoint of step 12\): add --resume"):
        loop.run(short_run.config(home), undisturbed)


def test_resuming_with_another_model_is_refused(home, undisturbed):
    with pytest.raises(ValueError, match="--resume needs the model.vocab_size that the run began with: 364, not 400"):
        loop.run(short_run.config(home, model=short_run.small_model(soft_inputs=(), vocab_size=400)), undisturbed, resume=True)


@pytest.mark.parametrize(
    ("name", "old", "new", "changes"),
    [
        ("seed", 0, 1, dict(seed=1)),
        ("rows", 2, 3, dict(rows=3)),
        ("accumulation", 2, 1, dict(accumulation=1)),
        ("tokens.audio.stack", 4, 1, dict(tokens=TokensConfig(audio=AudioTokens(stack=1)))),
        ("vocabulary", ".*", "elsewhere", dict(vocabulary="elsewhere")),
        ("data.folder.held_out", 0.2, 0.3, dict(folder=FolderConfig(held_out=0.3))),
        ("data.prompt_dropout", 0.0, 0.1, dict(prompt_dropout=0.1)),
        ("data.sources.1.kind", None, "world", dict(sources=SourceConfig("world", task="story"))),
        ("ema .on or off.", True, False, dict(ema=0.0)),
        ("optimizer.frozen", "nothing", "embed", dict(optimizer=OptimizerConfig(frozen=("embed",)))),
    ],
)
def test_resuming_with_another_order_of_the_data_is_refused(home, undisturbed, name, old, new, changes):
    config = short_run.config(home)
    data = {key: changes.pop(key) for key in ("folder", "prompt_dropout", "sources") if key in changes}
    if "sources" in data:
        data["sources"] = (*config.data.sources, data["sources"])
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data), **changes)
    with pytest.raises(ValueError, match=f"--resume needs the {name} that the run began with: {old}, not {new}"):
        loop.run(config, undisturbed, resume=True)


def test_resuming_may_change_what_no_step_reads(home, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    folder = dataclasses.replace(short_run.config(home).data.folder, bad_files="stop")
    data = dataclasses.replace(short_run.config(home).data, folder=folder, world=WorldConfig(cache="elsewhere"))
    loop.run(short_run.config(home, data=data, checkpoint_every=5, log_every=1, evaluate_every=0, steps=13), tmp_path, resume=True)
    assert metrics.read(tmp_path)[-1]["step"] == 13


def test_a_vocabulary_larger_than_the_model_is_refused(home, tmp_path):
    with pytest.raises(ValueError, match=r"the vocabulary has \d+ ids, but model.vocab_size is 40"):
        loop.run(short_run.config(home, model=short_run.small_model(soft_inputs=())), tmp_path)


def test_a_time_budget_ends_the_run(home, tmp_path):
    model = loop.run(short_run.config(home, steps=0, minutes=0.02, log_every=1, checkpoint_every=0, evaluate_every=0), tmp_path)
    seconds = [line["seconds"] for line in metrics.read(tmp_path) if "seconds" in line]
    assert seconds[-1] >= 0.02 * 60
    assert all(before < 0.02 * 60 for before in seconds[:-2])  # a step is logged while the next one runs
    assert short_run.hash_of(model)
