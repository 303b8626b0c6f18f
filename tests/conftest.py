"""Tests, and the programs that they start, run compiled code for milliseconds: XLA leaves its expensive optimisations out."""

import os

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # read when JAX is imported
