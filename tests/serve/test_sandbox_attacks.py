"""Attacks by code in the sandbox, each of which has to fail inside."""

import os
import socket
import textwrap
from pathlib import Path

import pytest
from small_sandbox import FEW, needs_bubblewrap, run, small_sandbox

from pollux.serve.tools import system_calls
from pollux.serve.tools.sandbox import Sandbox

pytestmark = needs_bubblewrap


@pytest.fixture(scope="module")
def sandbox():
    return small_sandbox()


def refused(sandbox, code):
    """Runs code that prints what it could do, and has to print nothing but the names of exceptions."""
    attempt = """
    def attempt(what):
        try:
            print("DONE", what())
        except Exception as error:
            print(type(error).__name__)
    """
    ran = run(sandbox, textwrap.dedent(attempt) + textwrap.dedent(code))
    assert ran.status == 0 and ran.output and "DONE" not in ran.output, ran.output
    return ran.output.split()


def test_files_of_the_machine_are_not_there(sandbox, tmp_path):
    (tmp_path / "secret.txt").write_text("the data of the server")
    places = ["/etc/shadow", "/etc/passwd", str(tmp_path / "secret.txt"), str(Path.home()), "/root", "/home", "/var"]
    places += [f"/proc/{os.getpid()}/environ", str(Path("/proc/1/root", "etc", "shadow")), __file__]
    errors = refused(
        sandbox,
        f"""
        import os
        for place in {places!r}:
            attempt(lambda: os.listdir(place) if os.path.isdir(place) else open(place).read())
        """,
    )
    assert len(errors) == len(places) and set(errors) <= {"FileNotFoundError", "PermissionError", "NotADirectoryError"}


def test_a_hidden_folder_inside_what_is_seen_is_empty():
    """A data folder in /usr, such as that of a server in a container."""
    folder = Path("/usr/share/zoneinfo")
    assert folder.is_dir() and any(folder.iterdir())
    listing = "import os; print(os.listdir('/usr/share/zoneinfo'))"
    assert run(Sandbox(FEW, hidden=[folder]), listing).output == "[]\n"
    assert run(Sandbox(FEW), listing).output != "[]\n"


def test_the_environment_of_the_server_is_not_there(sandbox, monkeypatch):
    monkeypatch.setenv("POLLUX_SECRET", "a key of the server")
    ran = run(
        sandbox,
        """
        import os, pathlib
        print(dict(os.environ))
        for number in filter(str.isdecimal, os.listdir("/proc")):
            try:
                print(pathlib.Path("/proc", number, "environ").read_bytes())
            except OSError:
                pass
        """,
    )
    assert "PYTHONPATH" in ran.output and "SECRET" not in ran.output and "a key" not in ran.output


def test_there_is_no_network(sandbox):
    """Neither the world, nor a server on the loopback address of this machine, nor a socket with a name in no folder."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as named:
        named.bind("\0pollux-test-of-the-sandbox")
        named.listen()
        errors = refused(
            sandbox,
            f"""
            import socket, urllib.request
            attempt(lambda: socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), timeout=5))
            attempt(lambda: socket.create_connection(("1.1.1.1", 53), timeout=5))
            attempt(lambda: urllib.request.urlopen("http://example.com", timeout=5))
            attempt(lambda: socket.socket(socket.AF_UNIX).connect("\\0pollux-test-of-the-sandbox"))
            """,
        )
        assert len(errors) == 4
        with socket.create_connection(server.getsockname()), socket.socket(socket.AF_UNIX) as other:
            other.connect("\0pollux-test-of-the-sandbox")  # both answer outside


def test_nothing_can_be_written_but_in_tmp(sandbox):
    places = [
        "/usr/x",
        "/usr/bin/python3",
        "/x",
        "/etc/x",
        "/dev/x",
        "/proc/sys/kernel/hostname",
        "/proc/self/oom_score_adj/x",
        "/packages0/x",
    ]
    errors = refused(
        sandbox,
        f"""
        import os
        for place in {places!r}:
            attempt(lambda: open(place, "w").write("x"))
        attempt(lambda: os.chmod("/usr", 0o777))
        attempt(lambda: os.remove("/usr/bin/env"))
        """,
    )
    assert len(errors) == len(places) + 2


def test_doors_out_of_the_namespaces_are_closed(sandbox):
    """Other namespaces, mounts, other processes' memory, and memory that no limit counts."""
    numbers = {name: both[["x86_64", "aarch64"].index(os.uname().machine)] for name, both in system_calls._REFUSED.items()}
    ran = run(
        sandbox,
        f"""
        import ctypes, errno, os
        libc = ctypes.CDLL(None, use_errno=True)
        for name, number in {numbers!r}.items():
            libc.syscall(number, 0, 0, 0, 0, 0, 0)
            print(name, errno.errorcode.get(ctypes.get_errno()))
        print(libc.syscall({numbers["unshare"]}, 0x10000000), libc.getuid())
        """,
    )
    lines = ran.output.splitlines()
    assert lines[:-1] == [f"{name} EPERM" for name in numbers] and lines[-1] == "-1 1000"


def test_a_fork_bomb_stays_small(sandbox):
    ran = run(
        sandbox,
        """
        import os, sys, time
        children = 0
        try:
            while children < 10_000:
                if os.fork() == 0:
                    time.sleep(600)
                    os._exit(0)
                children += 1
        except BlockingIOError:
            print("no more", children)
        """,
    )
    words = ran.output.split()
    assert words[:2] == ["no", "more"] and 5 <= int(words[2]) < FEW.processes and ran.status == 0


def test_a_memory_bomb_fails(sandbox):
    ran = run(sandbox, "x = bytearray(1)\nwhile True: x += bytes(1 << 24)")
    assert ran.status == 1 and "MemoryError" in ran.output
    several = run(
        sandbox,
        """
        import os, time
        for i in range(8):
            if os.fork() == 0:
                x = b"x" * (100 << 20)
                time.sleep(600)
        time.sleep(600)
        """,
    )
    assert several.ended == "more than 256 MiB of memory" and not several.late


def test_files_are_limited_in_size_and_number(sandbox):
    ran = run(
        sandbox,
        """
        import os
        for folder in ("/tmp", "/dev/shm"):
            try:
                for i in range(100):
                    open(f"{folder}/{i}", "wb").write(bytes(1 << 20))
            except OSError as error:
                print(folder, i, error.strerror)
        """,
    )
    (tmp, number, *why), (shm, other, *_) = (line.split() for line in ran.output.splitlines())
    assert (tmp, shm, why) == ("/tmp", "/dev/shm", ["No", "space", "left", "on", "device"]) and int(number) <= 8 and int(other) <= 8
    many = run(sandbox, "import time\nfor i in range(3000): open(str(i), 'w')\ntime.sleep(600)")
    assert many.ended == "more than 300 files"


def test_limits_cannot_be_raised(sandbox):
    names = ("AS", "NPROC", "FSIZE", "NOFILE", "CPU")
    errors = refused(
        sandbox,
        f"""
        import resource
        for name in {names!r}:
            kind = getattr(resource, f"RLIMIT_{{name}}")
            attempt(lambda: resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)))
        """,
    )
    assert errors == ["ValueError"] * len(names)


def test_killing_what_is_around_it_kills_only_itself(sandbox):
    ran = run(
        sandbox,
        f"""
        import os, signal
        print(os.getppid(), sorted(map(int, filter(str.isdecimal, os.listdir("/proc")))) == [1, os.getpid()], flush=True)
        os.kill(1, signal.SIGKILL)
        for number in (os.getppid(), {os.getpid()}, -1):
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                print("not there", flush=True)
        """,
    )
    assert ran.output == "1 True\nnot there\nnot there\n" and ran.status == 0
