"""The KL to a teacher and its gradient against float64 numpy and torch, with all ids and with the most probable ones."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batch import TOKENS, random_batch, small_model, stack
from scipy.special import log_softmax, logsumexp

from pollux.data.mixture import DataConfig, SourceConfig
from pollux.model import decoder, params
from pollux.tokens.sequence import Modality
from pollux.train import distillation, objective
from pollux.train.config import DistillConfig, LossConfig, OptimizerConfig, TrainConfig
from pollux.train.distillation import Teacher, TopK
from pollux.train.step import initial_state, make_step

V = 11


@pytest.fixture(scope="module")
def logits():
    """Of a teacher and a student, float32 [5, V]; the teacher is nearly certain of one id in the first row."""
    teacher, student = np.random.default_rng(0).normal(scale=2, size=(2, 5, V)).astype(np.float32)
    teacher[0, 3] += 60
    return teacher, student


@jax.jit(static_argnums=2)
def kl_and_gradient(teacher, student, config):
    log_p = jax.nn.log_softmax(teacher / config.temperature)
    expected = distillation.top_k(log_p, config.top_k) if config.top_k else log_p
    each = distillation.divergence(student, expected, config)
    return each, jax.grad(lambda x: jnp.sum(distillation.divergence(x, expected, config)))(student)


def outcomes(logits, temperature, ids=None):
    """float64 probabilities of the ids, and of all others as one more outcome."""
    p = np.exp(log_softmax(np.asarray(logits, np.float64) / temperature, -1))
    if ids is None:
        return p
    chosen = np.zeros(p.shape, bool)
    np.put_along_axis(chosen, ids, True, -1)
    return np.concatenate([np.take_along_axis(p, ids, -1), (p * ~chosen).sum(-1, keepdims=True)], -1)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("top_k", [0, 3, V - 1])
def test_divergence_is_the_sum_of_p_log_p_over_q_with_all_other_ids_as_one_outcome(logits, top_k, direction):
    teacher, student = logits
    config = DistillConfig(temperature=1.7, top_k=top_k, direction=direction)
    ids = np.argsort(-teacher, -1)[:, :top_k] if top_k else None
    p, q = outcomes(teacher, 1.7, ids), outcomes(student, 1.7, ids)
    if direction == "reverse":
        p, q = q, p
    each, gradient = kl_and_gradient(*logits, config)
    np.testing.assert_allclose(each, (p * np.log(p / q)).sum(-1), rtol=1e-5)

    def kl(student):
        a, b = outcomes(teacher, 1.7, ids), outcomes(student, 1.7, ids)
        a, b = (b, a) if direction == "reverse" else (a, b)
        return (a * np.log(a / b)).sum(-1)

    for column in range(V):
        step = np.zeros(V)
        step[column] = 1e-4
        slope = (kl(student + step) - kl(student - step)) / 2e-4
        np.testing.assert_allclose(gradient[:, column], slope, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_divergence_and_gradient_are_those_of_torch(logits, direction):
    torch = pytest.importorskip("torch")
    teacher, student = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in logits)
    log_p, log_q = (torch.nn.functional.log_softmax(x / 2.0, -1) for x in (teacher, student))
    input, target = (log_q, log_p) if direction == "forward" else (log_p, log_q)
    expected = torch.nn.functional.kl_div(input, target, reduction="none", log_target=True).sum(-1)
    expected.sum().backward()
    each, gradient = kl_and_gradient(*logits, DistillConfig(temperature=2.0, direction=direction))
    np.testing.assert_allclose(each, expected.detach(), rtol=1e-5)
    np.testing.assert_allclose(gradient, student.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("top_k", [V - 1, V, V + 5])
def test_as_many_ids_as_there_are_make_the_whole_distribution(logits, top_k):
    whole, gradient = kl_and_gradient(*logits, DistillConfig(temperature=1.5))
    each, of_each = kl_and_gradient(*logits, DistillConfig(temperature=1.5, top_k=top_k))
    np.testing.assert_allclose(each, whole, rtol=1e-5)
    np.testing.assert_allclose(of_each, gradient, rtol=1e-4, atol=1e-6)


def test_fewer_ids_never_say_more(logits):
    values = [np.asarray(kl_and_gradient(*logits, DistillConfig(temperature=1.7, top_k=k))[0]) for k in (3, V - 1, 0)]
    assert (values[0][1:] < values[1][1:]).all()  # in the first row the teacher is certain
    np.testing.assert_allclose(values[1], values[2], rtol=1e-5)


def config(**distill) -> TrainConfig:
    data = DataConfig((SourceConfig("world", task="picture"),))
    loss = LossConfig(alpha=0.7, z=0.0, draw=2.5)
    options = dict(steps=1, loss=loss, distill=DistillConfig(**distill), optimizer=OptimizerConfig("adamw", learning_rate=1e-2))
    return TrainConfig(small_model(num_groups=1), TOKENS, data, "", **options)


@pytest.fixture(scope="module")
def teacher():
    """A wider model than the student, on the same ids."""
    model = small_model(d_model=24, num_groups=1)
    return Teacher(jax.jit(lambda: params.init(model, jax.random.key(7)))(), model)


@pytest.fixture(scope="module")
def student():
    return jax.jit(lambda: params.init(small_model(num_groups=1), jax.random.key(1)))()


def target_logits(weights, model, batch):
    """float64 logits at the targets."""
    every = jax.jit(lambda x: decoder.logits(x, model, decoder.hidden(x, model, batch.inputs).hidden))(weights)
    return np.take_along_axis(np.asarray(every, np.float64), batch.targets.index[..., None], 1)


def test_the_loss_mixes_cross_entropy_and_the_kl_of_what_teacher_and_student_expect_at_the_targets(teacher, student):
    batch, settings = random_batch(seed=3), config(weight=0.4, temperature=2.0)
    value, metrics = jax.jit(lambda *x: objective.loss(x[0], settings, x[1], teacher=x[2]))(student, batch, teacher)
    theirs, ours = target_logits(teacher.params, teacher.config, batch), target_logits(student, settings.model, batch)
    p, q = outcomes(theirs, 2.0), outcomes(ours, 2.0)
    weight = batch.targets.weight * np.where(batch.targets.modality == Modality.DRAW, 2.5, 1.0)
    kl = np.average((p * np.log(p / q)).sum(-1), weights=weight)
    nll = logsumexp(ours, -1) - np.take_along_axis(ours, batch.targets.ids[..., None], -1)[..., 0]
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(value, 0.7 * (0.6 * np.average(nll, weights=weight) + 0.4 * 4.0 * kl), rtol=1e-5)


def test_the_teacher_gets_no_gradient(teacher, student):
    settings = config(weight=1.0, direction="reverse")
    gradient = jax.jit(jax.grad(lambda theirs: objective.loss(student, settings, random_batch(), None, replace(teacher, params=theirs))[0]))
    for leaf in jax.tree.leaves(gradient(teacher.params)):
        np.testing.assert_array_equal(leaf, 0)


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(student):
    whole, few = (config(weight=1.0, temperature=1.5, top_k=k) for k in (0, 4))
    own = Teacher(student, whole.model)

    @jax.jit
    @jax.value_and_grad
    def kl(weights):
        return sum(objective.loss(weights, settings, random_batch(), None, own)[1]["kl"] for settings in (whole, few))

    value, gradient = kl(student)
    assert abs(float(value)) < 2e-6
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient)) < 2e-6


def test_what_a_teacher_said_of_accumulated_batches_moves_the_student_as_the_teacher_does(teacher):
    """Two batches with stored targets in one step against one batch of all rows with the teacher beside the student."""
    settings = config(weight=0.8, temperature=2.0, top_k=5)
    batches = [replace(b, inputs=replace(b.inputs, soft={})) for b in (random_batch(1), random_batch(2))]
    said = jax.jit(lambda t, b: distillation.expectation(t, settings.distill, b))
    stored = jax.tree.map(lambda *x: np.stack(x), *(said(teacher, b) for b in batches))
    assert isinstance(stored, TopK) and stored.log_probabilities.shape[-1] == 6
    state = jax.jit(lambda: initial_state(settings))()
    together = jax.tree.map(lambda *x: np.concatenate(x)[None], *batches)
    big, expected = jax.jit(make_step(settings))(state, together, np.float32(1), teacher=teacher)
    new, metrics = jax.jit(make_step(replace(settings, accumulation=2)))(state, stack(*batches), np.float32(1), teacher=stored)
    for name in ("kl", "loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(new.optimizer), jax.tree.leaves(big.optimizer), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
