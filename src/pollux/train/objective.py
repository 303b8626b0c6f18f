"""The training objective L = alpha LM + beta InfoNCE + gamma (z-loss + expert balance), and its terms as metrics.

LM is the mean cross-entropy over target weights, mixed with the KL to a teacher if there is one; only hidden states that predict something
meet the unembedding. InfoNCE pulls the mean hidden state of a document's media towards that of the text that means the same. Every
metric is a share of the whole optimiser step, so the sum over accumulated batches is the metric of one big batch; only the terms that
compare the members of a batch, InfoNCE and expert balance, are means over the batches instead.

Shapes: B rows, T tokens, M targets a row, D model, V vocabulary, P pairs a row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pollux.model import decoder
from pollux.model.params import Params
from pollux.tokens.sequence import Batch, Modality, Targets
from pollux.train import distillation
from pollux.train.config import LossConfig, TrainConfig
from pollux.train.distillation import Teacher, TopK

Metrics = dict[str, jax.Array]


class Totals(NamedTuple):
    """What the sums of one optimiser step are divided by; computed over all of its batches."""

    weight: jax.Array  # of all targets, each times the weight of its modality
    text: jax.Array  # of text targets
    draw: jax.Array  # of image-code targets
    batches: int = 1


def _modality_weight(config: LossConfig, modality: jax.Array) -> jax.Array:
    return jnp.where(modality == Modality.DRAW, config.draw, config.text)


def totals(config: LossConfig, targets: Targets, batches: int = 1) -> Totals:
    """Totals of targets with any leading axes."""
    weight, draw = targets.weight, targets.modality == Modality.DRAW
    text_weight, draw_weight = jnp.sum(weight * ~draw), jnp.sum(weight * draw)
    return Totals(jnp.sum(weight * _modality_weight(config, targets.modality)), text_weight, draw_weight, batches)


def _mean(values: jax.Array, weight: jax.Array, total: jax.Array) -> jax.Array:
    """Weighted sum over a total; 0 where there is nothing to average."""
    return jnp.sum(values * weight) / jnp.maximum(total, 1e-9)


def loss(
    params: Params, config: TrainConfig, batch: Batch, step_totals: Totals | None = None, teacher: Teacher | TopK | None = None
) -> tuple[jax.Array, Metrics]:
    """This batch's share of the objective (float32 scalar) and of its terms.

    step_totals: of all batches of the optimiser step; by default this batch is all of it.
    teacher: whom the student listens to, or what that one said of this batch; None = cross-entropy alone.
    Metrics: loss (the objective), lm, z (mean log^2 Z), balance, text and draw (mean cross-entropy in nats of each modality),
    text_targets and draw_targets (their weights), with beta > 0 align (InfoNCE) and pairs (how many were compared), and with a teacher
    kl (mean KL in nats a target, at the temperature).
    """
    weights, targets = config.loss, batch.targets
    total = totals(weights, targets) if step_totals is None else step_totals
    output = decoder.hidden(params, config.model, batch.inputs, dtype=jnp.dtype(config.compute))
    with jax.named_scope("loss"):
        predicting_BMD = jnp.take_along_axis(output.hidden, targets.index[..., None], axis=1)
        logits_BMV = decoder.logits(params, config.model, predicting_BMD)
        nll_BM, log_z_BM = cross_entropy(logits_BMV, targets.ids)
        weight_BM = targets.weight * _modality_weight(weights, targets.modality)
        draw_BM = targets.modality == Modality.DRAW
        metrics = {
            "lm": _mean(nll_BM, weight_BM, total.weight),
            "z": _mean(log_z_BM**2, weight_BM, total.weight),
            "balance": output.balance / total.batches,
            "text": _mean(nll_BM, targets.weight * ~draw_BM, total.text),
            "draw": _mean(nll_BM, targets.weight * draw_BM, total.draw),
            "text_targets": jnp.sum(targets.weight * ~draw_BM),
            "draw_targets": jnp.sum(targets.weight * draw_BM),
        }
        language = metrics["lm"]
        if teacher is not None:
            kl_BM = distillation.divergence(logits_BMV, distillation.expectation(teacher, config.distill, batch), config.distill)
            metrics["kl"] = _mean(kl_BM, weight_BM, total.weight)
            language = (1 - config.distill.weight) * language + config.distill.weight * config.distill.temperature**2 * metrics["kl"]
        objective = weights.alpha * language + weights.gamma * (weights.z * metrics["z"] + weights.balance * metrics["balance"])
        if weights.beta:
            media, text, present = pool_pairs(output.hidden, batch.inputs.segment, targets.pool, config.pairs_per_row)
            align = info_nce(media, text, present, params["log_temperature"])
            metrics |= {"align": align / total.batches, "pairs": jnp.sum(present).astype(jnp.float32)}
            objective += weights.beta * metrics["align"]
    return objective, metrics | {"loss": objective}


def cross_entropy(logits: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log softmax(logits)[ids] and log Z; logits float32 [..., V], ids [...] -> two float32 [...]."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.arange(logits.shape[-1]) == ids[..., None]  # a comparison fuses, where a gather's gradient is a scatter
    return log_z - jnp.sum(jnp.where(chosen, logits, 0.0), -1), log_z


def pool_pairs(hidden_BTD: jax.Array, segment_BT: jax.Array, pool_BT: jax.Array, pairs: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean hidden states of the two sides of the first `pairs` documents of every row that have them.

    Returns media float32 [B P, D], text float32 [B P, D], and present bool [B P]: both sides are there.
    """
    pooled = jnp.where(pool_BT > 0, segment_BT, 0)  # segments rise along a row, so a new maximum starts the next pair
    latest = jax.lax.cummax(pooled, axis=1)
    before = jnp.pad(latest, ((0, 0), (1, 0)))[:, :-1]
    number_BT = jnp.cumsum(pooled > before, axis=1) - 1
    hidden = hidden_BTD.astype(jnp.float32)
    sides, counts = [], []
    for side in (1, 2):
        member_BTP = ((number_BT[..., None] == jnp.arange(pairs)) & (pool_BT == side)[..., None]).astype(jnp.float32)
        count_BP = jnp.sum(member_BTP, 1)
        mean_BPD = jnp.einsum("btp,btd->bpd", member_BTP, hidden) / jnp.maximum(count_BP, 1)[..., None]
        sides.append(mean_BPD.reshape(-1, hidden.shape[-1]))
        counts.append(count_BP.reshape(-1))
    return sides[0], sides[1], (counts[0] > 0) & (counts[1] > 0)


def info_nce(media: jax.Array, text: jax.Array, present: jax.Array, log_temperature: jax.Array) -> jax.Array:
    """Symmetric InfoNCE (van den Oord et al. 2018; Radford et al. 2021) over cosine similarities; media, text [P, D], present bool [P].

    Each present item has to find its partner among the present ones of the other side; the mean over items and both directions.
    0 if no pair is present.
    """
    media, text = (x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12) for x in (media, text))
    scores = media @ text.T * jnp.exp(-log_temperature)
    masked = jnp.where(present[:, None] & present[None, :], scores, -1e30)
    own = jnp.diagonal(scores)
    nll = (jax.nn.logsumexp(masked, 1) + jax.nn.logsumexp(masked, 0)) / 2 - own
    return jnp.sum(jnp.where(present, nll, 0.0)) / jnp.maximum(jnp.sum(present), 1)
