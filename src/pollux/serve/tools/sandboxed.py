"""One run of bwrap while it lasts: code goes in, output comes out, what it takes is watched, and at the end nothing of it is left.

What no limit of a process counts is counted here, ten times a second: the memory of all processes together, and how many files there are.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pollux.serve.tools import system_calls

if TYPE_CHECKING:
    from pollux.serve.tools.sandbox import CodeLimits

NOBODY = 65534
TICK = 0.1  # seconds
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class End:
    status: int  # of the code, or of bwrap; 128 + n for signal n
    output: bytes
    why: str  # it was ended, "" if it ended itself
    late: bool


class Sandboxed:
    """command: what to start, made of three open files: one end of a socket by which the code goes in and its folder comes out, one for
    what bwrap tells of itself, and one with the filter of system calls."""

    def __init__(self, command: Callable[[int, int, int], list[str]]):
        self._control, theirs = socket.socketpair()
        self._info, told = os.pipe()
        self._folder = self._first = -1  # descriptors of the folder it works in, and of the process with which all others end
        rules = tempfile.TemporaryFile()
        try:
            rules.write(system_calls.program())
            rules.seek(0)
            self._bwrap = subprocess.Popen(
                command(theirs.fileno(), told, rules.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(), told, rules.fileno()),
                env={},  # which the code could read as that of the first process
                cwd="/",
                **_less_than_root(),
            )
        except BaseException:
            self._control.close()
            os.close(self._info)
            raise
        finally:
            theirs.close()
            os.close(told)
            rules.close()

    def __enter__(self) -> Sandboxed:
        return self

    def __exit__(self, *error: object) -> None:
        self._kill()
        assert self._bwrap.stdout is not None
        self._bwrap.stdout.close()
        self._control.close()
        for number in (self._info, self._folder, self._first):
            if number >= 0:
                os.close(number)

    def watch(self, code: bytes, until: float, limits: CodeLimits, ended: threading.Event) -> End:
        """Let it run to its end, or put an end to it. until: time.monotonic()."""
        output, why = bytearray(), ""
        begun = self._begin(code, until)
        with selectors.DefaultSelector() as selector:
            assert self._bwrap.stdout is not None
            selector.register(self._bwrap.stdout, selectors.EVENT_READ)
            looked = time.monotonic()
            while not why and (selector.get_map() or self._bwrap.poll() is None):
                if selector.get_map():
                    if selector.select(TICK) and not _read(self._bwrap.stdout.fileno(), output):
                        selector.unregister(self._bwrap.stdout)
                else:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._bwrap.wait(TICK)
                if len(output) > limits.output:
                    why = f"more than {limits.output:,} bytes of output"
                elif time.monotonic() >= until:
                    why = f"{limits.seconds:g} seconds are over"
                elif ended.is_set():
                    why = "nobody waits for it any more"
                elif begun and time.monotonic() - looked >= TICK:
                    why, looked = self._too_much(limits), time.monotonic()
        self._kill()
        while len(output) <= limits.output and _read(self._bwrap.stdout.fileno(), output):  # what was still in the pipe
            pass
        status = self._bwrap.returncode
        late = time.monotonic() >= until and bool(why) or status == 128 + signal.SIGXCPU
        return End(status, bytes(output[: limits.output]), why, late)

    def pictures(self, limits: CodeLimits) -> dict[str, bytes]:
        """PNG files that are left in its folder; only when all is dead, so that nothing changes while it is read."""
        if self._folder < 0:
            return {}
        found: dict[str, bytes] = {}
        for name in sorted(name for name in os.listdir(self._folder) if name.lower().endswith(".png")):
            with contextlib.suppress(OSError):  # a link, or a file that its owner may not read
                with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._folder), "rb") as file:
                    about = os.fstat(file.fileno())
                    if stat.S_ISREG(about.st_mode) and about.st_size <= limits.picture_size and (data := file.read()).startswith(_PNG):
                        found[name] = data
            if len(found) == limits.pictures:
                break
        return found

    def _begin(self, code: bytes, until: float) -> bool:
        """Take the folder and give the code; False if the sandbox could not be made, which bwrap then says in its output."""
        self._control.settimeout(max(0.01, until - time.monotonic()))
        try:
            _, given, _, _ = socket.recv_fds(self._control, 1, 1)
            if not given:
                return False
            self._folder = given[0]
            told = json.loads(os.read(self._info, 4096))  # which bwrap wrote before
            self._first = os.pidfd_open(told["child-pid"])
            self._first_pid = told["child-pid"]
            self._control.sendall(code)
            self._control.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def _too_much(self, limits: CodeLimits) -> str:
        """What there is too much of, "" for nothing."""
        about = os.fstatvfs(self._folder)
        if about.f_files - about.f_ffree > limits.files:
            return f"more than {limits.files:,} files"
        if _memory_below(self._first_pid) > limits.memory:
            return f"more than {limits.memory >> 20:,} MiB of memory"
        return ""

    def _kill(self) -> None:
        """End all that is left of it, and wait for that. The first process in the sandbox has ended when the kernel has ended the rest;
        bwrap itself, which only hears from it, may be quicker."""
        if self._first < 0:
            self._bwrap.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first, signal.SIGKILL)
            select.select([self._first], [], [])
        self._bwrap.wait()


def _read(number: int, into: bytearray) -> bool:
    """Take what there is; False at the end."""
    data = os.read(number, 1 << 16)
    into += data
    return bool(data)


def _less_than_root() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": ()} if os.geteuid() == 0 else {}


def _memory_below(root: int) -> int:
    """Bytes that a process and all that it has started hold for themselves, from /proc. Pages that they share count for each."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                with open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    children: dict[int, list[int]] = {}
    for process, parent in parents.items():
        children.setdefault(parent, []).append(process)
    found, pages = [root], 0
    while found:
        process = found.pop()
        found += children.get(process, ())
        with contextlib.suppress(OSError):
            with open(f"/proc/{process}/statm", "rb") as file:
                _, resident, shared, *_ = map(int, file.read().split())
                pages += resident - shared
    return pages * os.sysconf("SC_PAGE_SIZE")
