"""The sandbox of code that nobody has looked at: what honest code can do, and attacks, each of which has to fail inside."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from stored_server import until

from pollux.serve.tools import system_calls
from pollux.serve.tools.sandbox import CodeLimits, Sandbox

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="code is run by bubblewrap, which is not here (Debian: apt install bubblewrap)"
)
FEW = CodeLimits(seconds=60.0, memory=256 << 20, processes=16, disk=8 << 20, files=300, output=4096)


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox(FEW)
    made.check()
    return made


def run(sandbox, code, **how):
    return sandbox.run(textwrap.dedent(code), **how)


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


def processes_named(mark):
    """Processes of this machine with the mark as their last argument."""
    found = []
    for number in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if Path("/proc", number, "cmdline").read_bytes().endswith(f"\0{mark}\0".encode()):
                found.append(int(number))
        except OSError:
            continue
    return found


def test_code_prints_and_fails_as_programs_do(sandbox):
    ran = run(sandbox, "import math\nprint(math.comb(10, 3), 'é')")
    assert (ran.status, ran.output, ran.ended, ran.late) == (0, "120 é\n", "", False)
    ran = run(sandbox, "print('before')\nx = 1 / 0")
    assert ran.status == 1 and ran.output.startswith("before\nTraceback") and 'main.py", line 2' in ran.output
    assert run(sandbox, "import sys; sys.exit(3)").status == 3
    assert run(sandbox, "import os; os.kill(os.getpid(), 11)").status == 128 + signal.SIGSEGV
    assert run(sandbox, "print('\ud800')").status == 1  # no UTF-8: a mistake of the code
    assert run(sandbox, "print(open(0).read())").output == "\n"  # nothing to read
    assert run(sandbox, "#" * 300_000 + "\nprint('long')").output == "long\n"


def test_code_may_use_files_and_processes_of_its_own(sandbox):
    ran = run(
        sandbox,
        """
        import multiprocessing, os, subprocess, tempfile
        if __name__ == "__main__":
            open("notes.txt", "w").write("kept")
            print(open("notes.txt").read(), os.getcwd(), tempfile.TemporaryFile().write(b"abc"))
            print(subprocess.run(["echo", "a program"], capture_output=True, text=True).stdout.strip())
            with multiprocessing.Pool(2) as pool:
                print(pool.map(abs, [-1, -2]))
        """,
    )
    assert ran.output == "kept /tmp/work 3\na program\n[1, 2]\n" and ran.status == 0


def test_pictures_that_code_leaves_come_back(sandbox, tmp_path):
    """The packages of the server are there too, where those who run the code may read them."""
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    ran = run(
        sandbox,
        f"""
        import os
        data = {(tmp_path / "a.png").read_bytes()!r}
        for name in ("b.png", "A.PNG", "c.txt"):
            open(name, "wb").write(data)
        open("false.png", "w").write("no picture")
        os.symlink("/etc/passwd", "link.png")
        os.symlink("b.png", "other.png")
        os.mkfifo("pipe.png")
        os.mkdir("folder.png")
        open("large.png", "wb").write(data + bytes({FEW.picture_size}))
        """,
    )
    assert ran.output == "" and sorted(ran.pictures) == ["A.PNG", "b.png"]
    assert (np.asarray(PIL.Image.open(io.BytesIO(ran.pictures["b.png"]))) == pixels).all()
    many = run(sandbox, f"for i in range(20): open(f'{{i:02}}.png', 'wb').write({(tmp_path / 'a.png').read_bytes()!r})")
    assert list(many.pictures) == [f"{i:02}.png" for i in range(FEW.pictures)]


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


def test_endless_output_and_endless_loops_end(sandbox):
    ran = run(sandbox, "while True: print('again')")
    assert ran.ended == "more than 4,096 bytes of output" and ran.output.startswith("again\n" * 100) and len(ran.output) == 4096
    assert not ran.late
    for code in ("while True: pass", "import time; time.sleep(600)", "import os; os.close(1); os.close(2)\nwhile True: pass"):
        ran = run(sandbox, "print('begun', flush=True)\n" + code, seconds=3.0)
        assert ran.late and ran.output in ("begun\n", ""), ran  # "": the machine was too busy to begin
    busy = run(
        Sandbox(CodeLimits(seconds=60)),
        "import resource as r\nr.setrlimit(r.RLIMIT_CPU, (1, 2))\nprint(r.getrlimit(r.RLIMIT_AS)[1])\nwhile True: pass",
    )
    assert busy.late and busy.status == 128 + signal.SIGXCPU and busy.output == f"{1 << 30}\n"


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


def test_no_daemon_outlives_its_code(sandbox):
    mark = f"pollux-daemon-{os.getpid()}"
    ran = run(
        sandbox,
        f"""
        import os, subprocess, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for number in range(3):
                    os.close(number)
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", "{mark}"])
            os._exit(0)
        def there():
            commands = (open(f"/proc/{{number}}/cmdline", "rb").read() for number in os.listdir("/proc") if number.isdecimal())
            return any(command.endswith(b"{mark}\\0") for command in commands)

        while not there():
            time.sleep(0.01)
        print("it runs")
        """,
    )
    assert ran.output == "it runs\n" and ran.status == 0
    assert processes_named(mark) == []


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


def test_who_leaves_ends_it(sandbox):
    left = threading.Event()
    threading.Timer(1.0, left.set).start()
    ran = run(sandbox, "import time; time.sleep(600)", ended=left)
    assert ran.ended == "nobody waits for it any more" and not ran.late


def test_a_server_that_is_killed_leaves_nothing_behind():
    mark = f"pollux-orphan-{os.getpid()}"
    code = f"import os, sys, time\nos.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', '{mark}'])"
    program = f"from pollux.serve.tools.sandbox import Sandbox; Sandbox().run({code!r})"
    server = subprocess.Popen([sys.executable, "-c", program])
    try:
        until(lambda: processes_named(mark))
    finally:
        server.kill()
        server.wait()
    until(lambda: not processes_named(mark))


def test_several_run_beside_each_other_and_leave_no_descriptor_or_process(sandbox):
    before = len(os.listdir("/proc/self/fd"))
    found = {}

    def one(i):
        found[i] = run(sandbox, f"import os; print({i}, os.listdir('/tmp/work'), len(os.listdir('/proc/self/fd')))").output

    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: f"{i} [] 4\n" for i in range(4)}
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_bubblewrap_the_start_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="apt install bubblewrap"):
        Sandbox().check()


def test_without_user_namespaces_the_start_says_so(monkeypatch):
    """bwrap inside another sandbox, which forbids them."""
    bwrap = shutil.which("bwrap")
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder, "bwrap")
        inner.write_text(f"""#!/bin/sh
if [ "$1" = --help ]; then exec {bwrap} --help; fi
exec {bwrap} --ro-bind / / --unshare-user --disable-userns {bwrap} "$@"
""")
        for path in (inner, Path(folder)):
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        with pytest.raises(ValueError, match="It needs user namespaces"):
            Sandbox().check()
