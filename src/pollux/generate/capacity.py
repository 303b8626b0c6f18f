"""How many tokens of KV cache a server takes if nobody says: as many as its rows can use, within a share of the memory that is free.

A cache that grows has other shapes after each growth, so that all programs are compiled again while people wait; that of a server is
from the start as large as it will ever be.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax

from pollux.generate.decode import CHUNK, cache_dtype
from pollux.generate.memory import PAGE
from pollux.generate.model import Model
from pollux.model.params import kv_bytes_per_token

MOST_ON_CPU = 2**16  # a CPU writes too slowly to fill more
SHARE_ON_CPU, SHARE_ON_ACCELERATOR = 1 / 8, 1 / 2  # of the free memory
SPARE = 4 * CHUNK + 2 * PAGE  # beside a row: what the engine writes ahead


def cache_tokens(model: Model, rows: int, free: int | None = None) -> int:
    """Tokens for `rows` conversations of any length that the model allows. free: bytes of memory; None: asked of the device.

    Raises ValueError if there is no room for a conversation of 1,024 tokens.
    """
    on_cpu = jax.default_backend() == "cpu"
    free = free_bytes() if free is None else free
    wanted = rows * (model.config.longest + SPARE)
    if on_cpu:
        wanted = min(wanted, max(MOST_ON_CPU, model.config.longest + SPARE))
    size = 1 if model.kv_cache_dtype else cache_dtype(model.params).itemsize
    room = int(free * (SHARE_ON_CPU if on_cpu else SHARE_ON_ACCELERATOR)) // max(sum(kv_bytes_per_token(model.config, size).values()), 1)
    if room < 1024 + SPARE:
        raise ValueError(f"the {free >> 20} MiB of memory that are free leave no room for the cache of this model; see --cache-tokens")
    return min(wanted, room) // PAGE * PAGE


def free_bytes() -> int:
    """Memory that is free on the device."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        return next(int(line.split()[1]) << 10 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # what others use is not told
