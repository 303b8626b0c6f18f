"""Compiled programs on disk, so that the second start of a command skips XLA's compilation."""

from __future__ import annotations

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


def cache_folder() -> Path:
    """$POLLUX_CACHE, or ~/.cache/pollux."""
    return Path(os.environ.get("POLLUX_CACHE") or Path.home() / ".cache" / "pollux")


def use_compilation_cache() -> None:
    """Keep compiled programs in the cache folder. A cache that was chosen through JAX's own settings stays."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        compilation_cache.reset_cache()  # JAX looks at its settings once, at the first compilation
