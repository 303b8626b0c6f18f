"""The sandbox of code that nobody has looked at: what honest code can do, how code ends, and where no sandbox can be made."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from small_sandbox import FEW, needs_bubblewrap, run, small_sandbox
from stored_server import until

from pollux.serve.tools.sandbox import CodeLimits, Sandbox

pytestmark = needs_bubblewrap


@pytest.fixture(scope="module")
def sandbox():
    return small_sandbox()


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


def test_who_has_no_home_has_a_sandbox(monkeypatch):
    """As in containers whose user is a mere number."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    Sandbox()


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
