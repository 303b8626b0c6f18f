"""One training step of a text decoder on this machine: pollux against torch, eager and compiled, same parameters and same arithmetic.

    .venv/bin/python benchmarks/training_step.py --write

Everybody starts from pollux's parameters and must agree on the loss, then they take turns: each round gives each of them a few
steps, and the median over rounds counts. All share one process, its threads and its allocator settings
(pollux/commands/memory.py). `--write` puts the table into docs/performance.md.
Shapes: B rows, T tokens, D model, N heads, H head size, V vocabulary.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from torch.nn import functional

from pollux.commands.memory import keep_freed_memory
from pollux.data.mixture import DataConfig, SourceConfig
from pollux.model.config import AttentionConfig, FeedForwardConfig, LayerConfig, ModelConfig
from pollux.tokens.config import TokensConfig
from pollux.tokens.sequence import Batch, Inputs, Targets
from pollux.train.config import Compute, LossConfig, OptimizerConfig, TrainConfig
from pollux.train.step import State, initial_state, make_step

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
OPTIMIZER = OptimizerConfig("adamw", learning_rate=3e-4, weight_decay=0.1, beta2=0.999)
Step = Callable[[], float]  # one optimiser step; returns the loss before it


@dataclass(frozen=True)
class Settings:
    layers: int = 8
    d_model: int = 384
    heads: int = 6
    vocab_size: int = 4096
    rows: int = 8
    row_length: int = 512
    rounds: int = 7  # of which each contender gets `steps` steps
    steps: int = 2
    bfloat16: bool = True  # time products in bfloat16 too
    compiled: bool = True  # time torch.compile, which needs a C++ compiler
    write: bool = False  # put the table into docs/performance.md


def train_config(settings: Settings, compute: Compute) -> TrainConfig:
    """RMSNorm, RoPE, QK-norm, gated GELU, tied embedding, AdamW; no clipping, no averaged weights, all positions are targets."""
    attention = AttentionConfig(settings.heads, settings.heads, settings.d_model // settings.heads)
    layer = LayerConfig(attention, FeedForwardConfig(4 * settings.d_model))
    options = dict(num_groups=settings.layers, post_norm=False, embed_scale=False)
    return TrainConfig(
        ModelConfig("benchmark", settings.vocab_size, settings.d_model, (layer,), **options),
        TokensConfig(),
        DataConfig((SourceConfig("world", "story"),)),
        vocabulary="",
        rows=settings.rows,
        row_length=settings.row_length,
        targets_per_row=settings.row_length,
        steps=1,
        optimizer=OPTIMIZER,
        loss=LossConfig(gamma=0.0),
        compute=compute,
        clip=0.0,
    )


def pollux_step(config: TrainConfig, state: State, ids_BT: np.ndarray, next_BT: np.ndarray) -> Step:
    B, T = ids_BT.shape
    zero, one, index = (np.broadcast_to(np.int32(x), (1, B, T)) for x in (0, 1, np.arange(T)))
    inputs = Inputs(ids_BT[None], index, one, zero, zero, {})
    batch = jax.device_put(Batch(inputs, Targets(index, next_BT[None], one.astype(np.float32), zero, zero)))
    step = jax.jit(make_step(config), donate_argnums=0)
    state = jax.tree.map(jnp.copy, state)

    def run() -> float:
        nonlocal state
        state, metrics = step(state, batch, np.float32(1))
        return float(metrics["loss"])

    return run


def torch_loss(p: dict, config: ModelConfig, ids_BT: torch.Tensor, next_BT: torch.Tensor) -> torch.Tensor:
    """The same decoder in torch; p: pollux's parameters as tensors, layers stacked."""
    B, T = ids_BT.shape
    N, H, D = config.pattern[0].attention.num_heads, config.pattern[0].attention.head_dim, config.d_model
    angle_TH = torch.arange(T)[:, None] * 10_000.0 ** (-torch.arange(0, H, 2) / H)
    cos, sin = angle_TH.cos(), angle_TH.sin()

    def norm(x, scale):
        return functional.rms_norm(x, scale.shape, scale, config.norm_eps)

    def rotate(x_BNTH):
        first, second = x_BNTH.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    (group,) = p["groups"]
    x_BTD = p["embed"][ids_BT]
    for i in range(config.num_groups):
        attention, ff = ({k: v[i] for k, v in group[name].items()} for name in ("attention", "feed_forward"))
        h = norm(x_BTD, group["attention_pre_norm"]["scale"][i])
        q, k, v = ((h @ attention[name]).view(B, T, N, H).transpose(1, 2) for name in "qkv")
        q, k = rotate(norm(q, attention["q_norm"])), rotate(norm(k, attention["k_norm"]))
        y = functional.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        x_BTD = x_BTD + y.transpose(1, 2).reshape(B, T, D) @ attention["o"]
        h = norm(x_BTD, group["feed_forward_pre_norm"]["scale"][i])
        x_BTD = x_BTD + (functional.gelu(h @ ff["gate"], approximate="tanh") * (h @ ff["up"])) @ ff["down"]
    logits = norm(x_BTD, p["final_norm"]["scale"]) @ p["embed"].T
    return functional.cross_entropy(logits.flatten(0, 1).float(), next_BT.flatten())


def torch_step(config: TrainConfig, state: State, ids_BT: np.ndarray, next_BT: np.ndarray, compiled: bool) -> Step:
    params = jax.tree.map(lambda x: torch.tensor(np.asarray(x)).requires_grad_(), state.params)
    optimizer = torch.optim.AdamW(
        jax.tree.leaves(params),
        OPTIMIZER.learning_rate,
        (OPTIMIZER.beta1, OPTIMIZER.beta2),
        OPTIMIZER.epsilon,
        OPTIMIZER.weight_decay,
        fused=True,
    )
    loss_of = torch.compile(torch_loss) if compiled else torch_loss
    ids, following = torch.tensor(ids_BT).long(), torch.tensor(next_BT).long()

    def run() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.compute == "bfloat16"):
            loss = loss_of(params, config.model, ids, following)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def contenders(settings: Settings) -> dict[str, Step]:
    """Name -> step, all on the same batch and from the same parameters."""
    rng = np.random.default_rng(0)
    ids_BT, next_BT = rng.integers(0, settings.vocab_size, (2, settings.rows, settings.row_length)).astype(np.int32)
    computes: tuple[Compute, ...] = ("float32", "bfloat16") if settings.bfloat16 else ("float32",)
    steps: dict[str, Step] = {}
    for compute in computes:
        config = train_config(settings, compute)
        state = initial_state(config)
        steps[f"pollux {compute}"] = pollux_step(config, state, ids_BT, next_BT)
        steps[f"torch eager {compute}"] = torch_step(config, state, ids_BT, next_BT, compiled=False)
        if settings.compiled:
            steps[f"torch.compile {compute}"] = torch_step(config, state, ids_BT, next_BT, compiled=True)
    return steps


def measure(settings: Settings, steps: dict[str, Step]) -> dict[str, float]:
    """Median seconds a step. The first step of each is warm-up, and its loss shows that all compute the same."""
    first = {name: run() for name, run in steps.items()}
    for name, loss in first.items():
        if abs(loss - first["pollux float32"]) > (1e-3 if "float32" in name else 3e-2):
            raise ValueError(
                f"the first loss of {name} is {loss:.5f}, that of pollux float32 {first['pollux float32']:.5f}: not the same model"
            )
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(settings.rounds):
        for name, run in steps.items():
            run()  # a step that is not counted, in which the threads of the one before come to rest
            start = time.perf_counter()
            for _ in range(settings.steps):
                run()
            seconds[name].append((time.perf_counter() - start) / settings.steps)
    return {name: statistics.median(values) for name, values in seconds.items()}


def processor() -> str:
    """The name that Linux gives the processor, or what Python knows of it elsewhere."""
    names = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", names.read_text()) if names.exists() else None
    return found[1] if found else platform.processor()


def table(settings: Settings, seconds: dict[str, float]) -> str:
    """Markdown: what ran, on what, and tokens per second beside those of torch.compile (or eager) in float32."""
    reference = "torch.compile float32" if settings.compiled else "torch eager float32"
    tokens = settings.rows * settings.row_length
    lines = [
        f"{settings.layers} layers, d {settings.d_model}, {settings.heads} heads, gated GELU 4 d, vocabulary {settings.vocab_size}, "
        f"{settings.rows} x {settings.row_length} tokens, AdamW; median of {settings.rounds} rounds.",
        f"{datetime.date.today()}: {processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
        f"jax {jax.__version__}, torch {torch.__version__}.",
        "",
        f"| | seconds a step | tokens/s | {reference} = 1 |",
        "|---|---|---|---|",
    ]
    for name, value in seconds.items():
        lines.append(f"| {name} | {value:.3f} | {tokens / value:.0f} | {seconds[reference] / value:.2f} |")
    return "\n".join(lines)


def write(text: str) -> None:
    """Replace the table of docs/performance.md."""
    begin, end = "<!-- training_step -->\n", "\n<!-- /training_step -->"
    page = PAGE.read_text()
    before, after = page.split(begin)[0], page.split(end)[1]
    PAGE.write_text(before + begin + text + end + after)


def main(settings: Settings) -> None:
    text = table(settings, measure(settings, contenders(settings)))
    print(text)
    if settings.write:
        write(text)


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Settings, description=__doc__))
