"""Compiled programs on disk, so that the second start of a command skips XLA's compilation."""

from __future__ import annotations

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


def use_compilation_cache() -> None:
    """Keep compiled programs under $POLLUX_CACHE (default ~/.cache/pollux). A cache that was chosen through JAX's own settings stays."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        root = Path(os.environ.get("POLLUX_CACHE") or Path.home() / ".cache" / "pollux")
        jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        compilation_cache.reset_cache()  # JAX looks at its settings once, at the first compilation
