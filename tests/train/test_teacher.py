"""Whole runs of a student: with the teacher beside it or its stored targets, killed and resumed, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import short_run
from safetensors.numpy import load_file

from pollux.cli import main
from pollux.data.folder import FolderConfig
from pollux.data.mixture import DataConfig, SourceConfig
from pollux.model.config import SoftInputConfig
from pollux.model.folder import load_params, named, save
from pollux.model.params import init
from pollux.shrink.teach import teach
from pollux.tokens.config import AudioTokens, TokensConfig
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary
from pollux.train import loop, metrics, schedule
from pollux.train.config import DistillConfig, OptimizerConfig, ScheduleConfig
from pollux.train.teacher import SETTINGS, load_teacher, targets_file

OPTIONS = dict(optimizer=OptimizerConfig("adamw", learning_rate=1e-2), schedule=ScheduleConfig(warmup=1), checkpoint_every=0)


@pytest.fixture(scope="module")
def home(home):
    """Texts, vocabulary and a teacher that is wider than the student; its weights are random, but it is sure of what it says."""
    model = short_run.small_model(vocab_size=short_run.VOCABULARY + 64, soft_inputs=(), d_model=32, num_groups=1)
    weights = jax.jit(lambda: init(model, jax.random.key(5)))()
    weights["final_norm"]["scale"] *= 3.0
    save(home / "teacher", weights, model)
    Vocabulary.load(home).save(home / "teacher")
    return home


def student(home: Path, **distill):
    """A run whose teacher says the five most probable ids."""
    options = dict(teacher=str(home / "teacher"), weight=0.6, temperature=2.0, top_k=5)
    model = short_run.small_model(vocab_size=short_run.VOCABULARY + 64, soft_inputs=(), num_groups=1)
    data = DataConfig((SourceConfig("folder", path=str(home / "texts")),), folder=FolderConfig(held_out=0))
    return short_run.config(home, model=model, data=data, distill=DistillConfig(**(options | distill)), **OPTIONS)


@pytest.fixture(scope="module")
def undisturbed(home):
    """OUT of a student's run from start to end, and the teacher's file before it."""
    file = home / "teacher" / "model.safetensors"
    before = file.read_bytes()
    loop.run(student(home), home / "student")
    assert file.read_bytes() == before
    return home / "student"


@pytest.fixture(scope="module")
def targets(home):
    """The folder of what the teacher made of every step."""
    teach(student(home), home / "targets")
    return home / "targets"


def curve(out: Path, name: str) -> list[float]:
    return [line[name] for line in metrics.read(out) if name in line]


def stop_at(monkeypatch, wanted: int):
    factor = schedule.factor

    def stopping(config, step, *rest):
        if step == wanted:
            signal.raise_signal(signal.SIGTERM)
        return factor(config, step, *rest)

    monkeypatch.setattr(schedule, "factor", stopping)


def interrupted(config, out: Path, monkeypatch):
    """The run stopped at step 5, then continued to its end."""
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt, match="step 5 is saved"):
            loop.run(config, out)
    loop.run(config, out, resume=True)


def test_a_student_comes_closer_to_its_teacher_and_the_page_shows_it(undisturbed):
    kl = curve(undisturbed, "kl")
    assert len(kl) == 6 and kl[-1] < 0.9 * kl[0]
    assert "KL of teacher and student" in (undisturbed / "report.html").read_text()


def test_a_student_resumes_bit_for_bit(home, undisturbed, tmp_path, monkeypatch):
    interrupted(student(home), tmp_path, monkeypatch)
    assert short_run.hash_of(tmp_path / "model") == short_run.hash_of(undisturbed / "model")
    assert curve(tmp_path, "kl") == curve(undisturbed, "kl")


def test_stored_targets_teach_what_the_teacher_beside_it_does(home, undisturbed, targets, tmp_path):
    offline = student(home, targets=str(targets), teacher="")
    loop.run(offline, tmp_path)
    np.testing.assert_allclose(curve(tmp_path, "kl"), curve(undisturbed, "kl"), rtol=1e-4)
    expected = named(load_params(undisturbed / "model", offline.model))
    for name, tensor in named(load_params(tmp_path / "model", offline.model)).items():
        np.testing.assert_allclose(tensor, expected[name], atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_a_student_of_stored_targets_resumes_bit_for_bit(home, targets, tmp_path, monkeypatch):
    offline = student(home, targets=str(targets), teacher="")
    loop.run(offline, tmp_path / "whole")
    interrupted(offline, tmp_path / "parts", monkeypatch)
    assert short_run.hash_of(tmp_path / "parts" / "model") == short_run.hash_of(tmp_path / "whole" / "model")


@pytest.mark.slow
def test_teaching_goes_on_where_it_was_stopped(home, targets, tmp_path):
    teach(dataclasses.replace(student(home), steps=3), tmp_path)
    first = targets_file(tmp_path, 0, 1)
    first.write_bytes(b"kept")
    targets_file(tmp_path, 0, 3).unlink()
    teach(student(home), tmp_path)
    assert first.read_bytes() == b"kept"
    for step in (2, 3, 12):
        one, other = (load_file(targets_file(folder, 0, step)) for folder in (tmp_path, targets))
        for name in ("ids", "log_probabilities"):
            np.testing.assert_array_equal(one[name], other[name])


def test_the_verb_teaches_for_the_run_of_a_recipe(home, targets, tmp_path, capsys):
    recipe = tmp_path / "student.py"
    recipe.write_text(
        "from pathlib import Path\n"
        "from test_teacher import student\n"
        "def recipe(teacher: Path):\n"
        "    return student(teacher.parent, temperature=1.0, top_k=1)\n"
    )
    flags = "--distill.temperature 2 --distill.top-k 5 --steps 2".split()
    out = tmp_path / "targets"
    assert main(["teach", str(recipe), "--teacher", str(home / "teacher"), "--out", str(out), *flags]) == 0
    assert "step 2 of 2" in capsys.readouterr().out
    assert (out / SETTINGS).read_bytes() == (targets / SETTINGS).read_bytes()
    assert targets_file(out, 0, 2).read_bytes() == targets_file(targets, 0, 2).read_bytes()


def test_targets_that_do_not_fit_the_run_are_refused(home, targets, tmp_path):
    def refused(sentence, **distill):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            loop.run(student(home, **(dict(teacher="", targets=str(targets)) | distill)), tmp_path / "run")

    refused("were made with temperature 2.0, and the run has 1.0", temperature=1.0)
    refused("were made with top_k 5, and the run has 4", top_k=4)
    refused("holds no targets: it has no targets.json, which `pollux teach` writes", targets=str(tmp_path))
    with pytest.raises(ValueError, match="there are no targets for step 13: .*step-00000013.safetensors is missing"):
        loop.run(dataclasses.replace(student(home, teacher="", targets=str(targets)), steps=20), tmp_path / "longer")
    moved = tmp_path / "moved"
    targets_file(moved, 0, 1).parent.mkdir(parents=True)
    (moved / SETTINGS).write_bytes((targets / SETTINGS).read_bytes())
    targets_file(moved, 0, 1).write_bytes(targets_file(targets, 0, 2).read_bytes())
    refused("is about another batch than step 1 of this run reads", targets=str(moved))
    targets_file(moved, 0, 1).write_bytes(b"cut off")
    refused("is damaged or incomplete", targets=str(moved))
    with pytest.raises(ValueError, match="holds targets made with .*choose another folder"):
        teach(student(home, temperature=1.0), targets)
    with pytest.raises(ValueError, match="for a number of steps: distill.top_k is not given"):
        teach(student(home, top_k=0), tmp_path / "all")


def test_a_teacher_that_does_not_fit_the_run_is_refused(home, tmp_path):
    def refused(sentence, vocabulary=home, **changes):
        config = dataclasses.replace(student(home), **changes)
        with pytest.raises(ValueError, match=re.escape(sentence)):
            load_teacher(config, Vocabulary.load(vocabulary), None)

    small = short_run.small_model(vocab_size=400, soft_inputs=())
    refused("(364 ids) and the student (400 ids", model=small)
    Vocabulary(train_bpe(iter(["quite other words"]), short_run.VOCABULARY)).save(tmp_path)
    refused("differ in their vocabulary: give the student the teacher's", vocabulary=tmp_path)
    listening = short_run.small_model(vocab_size=364, soft_inputs=(SoftInputConfig("audio", 128),))
    tokens = TokensConfig(audio=AudioTokens(stack=1))
    refused("does not read audio as the run does", model=listening, tokens=tokens, soft_per_batch={"audio": 8})
