"""Makes the modules beside these tests (random_batch, short_run) importable, and halves their compile time."""

import sys
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Programs of these tests run for milliseconds: compile them without the expensive optimisations."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
