"""Compiled programs land on disk where the user, or JAX's own setting, wants them."""

import os
import subprocess
import sys

PROGRAM = """
import jax
jax.jit(lambda x: x + 1)(1)  # a compilation before the cache is chosen
from pollux.compilation import use_compilation_cache
use_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 2)(1)
"""


def compile_with(**environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=kept | environment)


def test_compiled_programs_are_kept_under_pollux_cache(tmp_path):
    compile_with(POLLUX_CACHE=str(tmp_path))
    assert any((tmp_path / "compiled").iterdir())


def test_a_cache_chosen_through_jax_stays(tmp_path):
    compile_with(POLLUX_CACHE=str(tmp_path / "pollux"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jax"))
    assert any((tmp_path / "jax").iterdir()) and not (tmp_path / "pollux").exists()
