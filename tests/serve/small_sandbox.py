"""A sandbox with few of everything, for tests, and how code is run in it."""

import shutil
import textwrap

import pytest

from pollux.serve.tools.sandbox import CodeLimits, Sandbox

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="code is run by bubblewrap, which is not here (Debian: apt install bubblewrap)"
)
FEW = CodeLimits(seconds=60.0, memory=256 << 20, processes=16, disk=8 << 20, files=300, output=4096)


def small_sandbox():
    made = Sandbox(FEW)
    made.check()
    return made


def run(sandbox, code, **how):
    return sandbox.run(textwrap.dedent(code), **how)
