"""Tests, and the programs that they start, run compiled code for milliseconds: XLA leaves its expensive optimisations out."""

import ctypes
import gc
import os
import sys

import pytest

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # read when JAX is imported

MOST = 2 << 30  # bytes of a test process


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """JAX keeps every program that it has compiled, and each module brings models of its own, so a process of many would hold gigabytes."""
    yield
    if "jax" in sys.modules and sys.platform == "linux" and resident() > MOST:
        sys.modules["jax"].clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Bytes that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
