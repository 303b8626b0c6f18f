"""Freed blocks stay with the process. The allocator belongs to a process, so each claim runs in one of its own."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, threading
from pollux.commands.memory import keep_freed_memory
if {keep}: keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def run():
    faults()
    print(faults())
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def page_faults(keep: bool) -> int:
    """Of the second of two equal blocks of 64 MiB, 16384 pages, in a thread."""
    program = PROGRAM.format(keep=keep)
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
def test_a_freed_block_is_used_again_without_page_faults():
    assert page_faults(keep=True) < 100
