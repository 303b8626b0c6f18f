"""How fast a run goes, and the line that says so: a live one in a terminal, plain lines elsewhere.

FLOP utilisation = model FLOPs a second / the rate of one large matrix product measured on the same device when the run starts. Model
FLOPs of a step: three times (forward and backward; twice if the weights are frozen under adapters) the products of weights with the tokens
that are not padding, and of the unembedding with the targets; attention scores, soft-token embedders, the optimiser and a teacher
are work that this figure does not count.
"""

from __future__ import annotations

import time
from types import TracebackType

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pollux.model.config import ModelConfig
from pollux.model.params import flops_per_token


def step_flops(model: ModelConfig, tokens: float, targets: float, passes: int = 3) -> float:
    """Model FLOPs of one training step, as the module defines them."""
    unembed = 2 * model.d_model * model.vocab_size
    return passes * (tokens * (flops_per_token(model, context=0) - unembed) + targets * unembed)


def peak_flops(compute: str) -> float:
    """FLOPs a second of one square matrix product in the compute type with float32 accumulation: the best of three."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jax.device_put(np.ones((size, size), jnp.dtype(compute)))
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class ProgressLine:
    """Context manager that shows the newest logged line of a run."""

    def __init__(self):
        console = Console()
        self._live = console.is_terminal
        self._progress = Progress(BarColumn(bar_width=24), TextColumn("{task.description}"), console=console, disable=not self._live)
        self._task = self._progress.add_task("compiling", total=1.0)

    def __enter__(self) -> ProgressLine:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._progress.console.print(text, highlight=False, soft_wrap=True)

    def show(self, line: dict[str, float], share: float, left_seconds: float) -> None:
        """line: as logged; share: finished part of the run; left_seconds: expected time to its end."""
        losses = "  ".join(f"{name} {line[name]:.3f}" for name in ("text", "draw", "align") if name in line)
        minutes, seconds = divmod(round(left_seconds), 60)
        rate = f"{line['tokens_per_second']:,.0f} tokens/s  {line['flop_utilisation']:.0%} of peak"
        text = f"step {line['step']}  {share:.0%}  {losses}  {rate}  {minutes}:{seconds:02} left"
        self._progress.update(self._task, completed=share, description=text)
        if not self._live:
            print(text, flush=True)
