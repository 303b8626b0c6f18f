"""Steps on answers that the student wrote itself: what they read, and that they repeat bit for bit."""

from __future__ import annotations

import dataclasses
import signal

import jax
import numpy as np
import pytest
import short_run

from pollux.data.mixture import open_mixture
from pollux.model import decoder, params
from pollux.model.folder import save
from pollux.tokens.vocabulary import SPECIALS, Vocabulary
from pollux.train import loop, metrics, schedule
from pollux.train.config import DistillConfig, OptimizerConfig
from pollux.train.on_policy import OnPolicy
from pollux.train.reading import replay


@pytest.fixture(scope="module")
def home(home):
    """Texts, vocabulary, and a random model as the teacher."""
    model = short_run.config(home).model
    save(home / "teacher", jax.jit(lambda: params.init(model, jax.random.key(9)))(), model)
    Vocabulary.load(home).save(home / "teacher")
    return home


def student(home, share: float, **changes):
    distill = DistillConfig(str(home / "teacher"), direction="reverse", on_policy=share, answer_tokens=12)
    options = dict(
        distill=distill, optimizer=OptimizerConfig("adamw"), accumulation=1, evaluate_every=0, steps=8, log_every=1, checkpoint_every=2
    )
    return short_run.config(home, **(options | changes))


def test_the_targets_are_what_the_student_goes_on_with_and_nothing_of_the_prompt(home):
    config, words = student(home, 1.0), Vocabulary.load(home)
    on_policy = OnPolicy(config, open_mixture(config.data, config.seed), words, None)
    weights = jax.jit(lambda: params.init(config.model, jax.random.key(3)))()
    weights["final_norm"]["scale"] *= 1000.0  # so certain that it draws the most probable id
    batch = jax.tree.map(lambda x: x[0], on_policy.batch(5, weights))
    texts = [path.read_text() for path in (home / "texts").iterdir()]
    logits = jax.jit(lambda x, inputs: decoder.logits(x, config.model, decoder.hidden(x, config.model, inputs).hidden))(
        weights, batch.inputs
    )
    allowed = [*words.stops, *range(len(SPECIALS), words.size)]
    answers = 0
    for row in range(config.rows):
        ids, segment = batch.inputs.ids[row], batch.inputs.segment[row]
        written = batch.targets.index[row][batch.targets.weight[row] > 0]
        np.testing.assert_array_equal(batch.targets.ids[row][: len(written)], ids[written + 1])
        for number in range(1, segment.max() + 1):
            here = np.flatnonzero(segment == number)
            own = np.intersect1d(here, written)
            np.testing.assert_array_equal(own, np.arange(own[0], here[-1]))
            assert 1 <= len(own) <= 12
            prompt = words.decode(ids[here[0] : own[0] + 1])
            assert any(f"<bos>{text}".startswith(prompt) and len(prompt) > len(text) / 3 for text in texts)
            chosen = np.asarray(logits)[row, own, ids[own + 1]]
            np.testing.assert_allclose(chosen, np.asarray(logits)[row, own][:, allowed].max(-1), rtol=1e-3)
            answers += 1
    assert answers >= config.rows
    jax.tree.map(np.testing.assert_array_equal, on_policy.batch(5, weights), jax.tree.map(lambda x: x[None], batch))
    assert not np.array_equal(on_policy.batch(6, weights).inputs.ids[0], batch.inputs.ids)


@pytest.mark.slow
def test_a_run_that_reads_its_own_answers_in_some_steps_resumes_bit_for_bit(home, tmp_path, monkeypatch):
    def read(out):
        return [{name: line.get(name) for name in ("step", "kl", "own_kl", "text", "loss")} for line in metrics.read(out) if "loss" in line]

    loop.run(student(home, 0.5), tmp_path / "whole")
    own = [line["step"] for line in metrics.read(tmp_path / "whole") if line.get("own_kl")]
    assert 0 < len(own) < 8
    for step in range(1, 9):
        if step in own:
            with pytest.raises(ValueError, match="answers that the student wrote itself"):
                replay(tmp_path / "whole", step)
        else:
            assert replay(tmp_path / "whole", step)[0].inputs.ids.any()
    factor = schedule.factor

    def stopping(config, step, *rest):
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
        return factor(config, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(schedule, "factor", stopping)
        with pytest.raises(KeyboardInterrupt, match="step 5 is saved"):
            loop.run(student(home, 0.5), tmp_path / "parts")
    loop.run(student(home, 0.5), tmp_path / "parts", resume=True)
    assert read(tmp_path / "parts") == read(tmp_path / "whole")
    assert short_run.hash_of(tmp_path / "parts" / "model") == short_run.hash_of(tmp_path / "whole" / "model")
    lines = read(tmp_path / "whole")
    own = [line["own_kl"] is not None for line in lines]
    assert own == [line["kl"] is None for line in lines] == [line["text"] is None for line in lines]
    assert 2 <= sum(own) <= 6


def test_an_answer_that_no_prompt_leaves_room_for_is_refused(home):
    config = student(home, 1.0)
    config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, answer_tokens=64))
    on_policy = OnPolicy(config, open_mixture(config.data, config.seed), Vocabulary.load(home), None)
    with pytest.raises(ValueError, match="no prompt leaves room for an answer of distill.answer_tokens 64"):
        on_policy.batch(1, {})
