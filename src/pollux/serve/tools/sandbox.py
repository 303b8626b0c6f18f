"""Python code that nobody has looked at, run in a sandbox of bubblewrap.

It sees a read-only system without /etc and without anybody's home, a private /tmp of limited size, no network, no other processes and no
environment of ours. Processor time, memory, processes, files and output are limited, and when it ends, or has to, all that it started is
killed with the namespace of its processes. A server that runs as root runs it as nobody.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pollux.serve.tools.sandboxed import Sandboxed

_USR, _SYSTEMS_OWN = Path("/usr"), Path("/usr/bin/python3")
_WORK = "/tmp/work"
LEAST_MEMORY = 128 << 20  # bytes
_SHM = 8 << 20  # bytes of /dev/shm, for semaphores

# The first process in the sandbox. It gives the folder that the code works in to the server, which reads it when all else is dead, takes
# the code, limits itself for good, and becomes the code.
_LAUNCHER = """
import os, resource, socket, sys
control = socket.socket(fileno={control})
folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
socket.send_fds(control, [b"."], [folder])
with control.makefile("rb") as stream:
    code = stream.read()
control.close()
os.close(folder)
with open("/tmp/main.py", "wb") as file:
    file.write(code)
os.nice(10)
for name, limit in {limits!r}.items():
    resource.setrlimit(getattr(resource, name), limit)
os.execv(sys.executable, [sys.executable, "-s", "-B", "-u", "/tmp/main.py"])
"""


@dataclass(frozen=True)
class CodeLimits:
    """What a piece of code may take. Sizes in bytes, times in seconds."""

    seconds: float = 30.0  # by the clock; of processor time each process may take as many
    memory: int = 1 << 30  # of each process, and of all together
    processes: int = 32  # threads included
    disk: int = 64 << 20  # of all its files
    files: int = 4096  # how many
    open_files: int = 64  # of each process
    output: int = 32 << 10  # what it writes to stdout and stderr
    pictures: int = 8  # that are given out
    picture_size: int = 4 << 20  # of each


@dataclass(frozen=True)
class Ran:
    """How a piece of code ended. output: what it wrote to stdout and stderr; ended: why the sandbox ended it, "" if it ended itself."""

    status: int  # 0 if it went well, 128 + n for signal n
    output: str
    ended: str = ""
    late: bool = False  # its time was over
    pictures: dict[str, bytes] = field(default_factory=dict)  # PNG files that it left in its folder, by name


class Sandbox:
    """hidden: folders that code may not see even where they lie inside what it sees, such as the server's data."""

    def __init__(self, limits: CodeLimits = CodeLimits(), hidden: Sequence[Path] = ()):
        self.limits = limits
        interpreter, prefix = Path(sys.executable).resolve(), Path(sys.base_prefix).resolve()
        self._version: tuple[int, ...] = sys.version_info[:2]  # () if there is no interpreter
        packages = [Path(sysconfig.get_paths()[name]).resolve() for name in ("purelib", "platlib")]
        if not (_is_open(interpreter) and _is_open(prefix)):
            interpreter, prefix = _SYSTEMS_OWN, _USR
            self._version = _version(interpreter)
            packages = packages if self._version == sys.version_info[:2] else []
        self._seen = {path: f"/packages{i}" for i, path in enumerate(dict.fromkeys(packages)) if _is_open(path)}  # besides /usr, and where
        self._path = ":".join(self._seen.values())
        if not prefix.is_relative_to(_USR):
            self._seen[prefix] = "/python"
        self._interpreter = str(Path("/python") / interpreter.relative_to(prefix) if prefix in self._seen else interpreter)
        places = {**self._seen, _USR: str(_USR)}
        hidden = [path.resolve() for path in (*hidden, Path(os.path.expanduser("~")))]  # not Path.home(), which fails if there is none
        self._covered = {
            path: str(Path(place) / path.relative_to(root))
            for path in hidden
            for root, place in places.items()
            if path.is_relative_to(root)
        }

    def check(self) -> None:
        """Raises ValueError that says what is missing if no code can be run here."""
        found = shutil.which("bwrap")
        if sys.platform != "linux" or found is None:
            raise ValueError("code is run by bubblewrap, on Linux, and there is no bwrap here: install it (Debian: apt install bubblewrap)")
        if not self._version:
            raise ValueError(
                f"nobody may read {Path(sys.executable).resolve()}, and there is no {_SYSTEMS_OWN} in its place to run code with"
            )
        if "--disable-userns" not in subprocess.run([found, "--help"], capture_output=True, text=True, check=False).stdout:
            raise ValueError(f"{found} is too old: it does not know --disable-userns, which bubblewrap 0.8 does")
        ran = self.run("print(6 * 7)")
        if ran.output != "42\n":
            raise ValueError(
                f"bubblewrap cannot make a sandbox here: {ran.output.strip() or ran.ended or f'status {ran.status}'}. It needs user"
                " namespaces; the container around it may forbid them, or the settings kernel.unprivileged_userns_clone,"
                " user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns"
            )

    def run(self, code: str, seconds: float | None = None, ended: threading.Event | None = None) -> Ran:
        """Run code and wait for its end, `seconds` at most; it is killed when `ended` is set. Raises OSError where there is no bwrap."""
        seconds = self.limits.seconds if seconds is None else min(seconds, self.limits.seconds)
        with Sandboxed(lambda control, info, rules: self._command(seconds, control, info, rules)) as running:
            end = running.watch(code.encode(errors="surrogatepass"), time.monotonic() + seconds, self.limits, ended or threading.Event())
            pictures = running.pictures(self.limits)
        return Ran(end.status, end.output.decode(errors="replace"), end.why, end.late, pictures)

    def _command(self, seconds: float, control: int, info: int, rules: int) -> list[str]:
        """What starts bwrap, with open files as class Sandboxed has them."""
        environment = {
            **{"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": _WORK, "TMPDIR": "/tmp", "LANG": "C.UTF-8"},
            **{"PYTHONPATH": self._path, "MPLBACKEND": "Agg", "MPLCONFIGDIR": "/tmp"},
            **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")},
        }
        return [
            shutil.which("bwrap") or "bwrap",
            *"--unshare-all --unshare-user --disable-userns --die-with-parent --new-session --clearenv".split(),
            *"--uid 1000 --gid 1000 --hostname sandbox --cap-drop ALL".split(),
            *("--info-fd", str(info), "--seccomp", str(rules)),
            *("--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"),
            *(word for name in ("bin", "sbin", "lib", "lib32", "lib64") for word in _beside_usr(name)),
            *(word for path, place in self._seen.items() for word in ("--ro-bind", str(path), place)),
            *(word for path, place in self._covered.items() if path.is_dir() for word in ("--tmpfs", place, "--remount-ro", place)),
            *("--proc", "/proc", "--dev", "/dev", "--size", str(_SHM), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
            *("--size", str(self.limits.disk), "--tmpfs", "/tmp", "--dir", _WORK, "--chdir", _WORK, "--remount-ro", "/"),
            *(word for name, value in environment.items() for word in ("--setenv", name, value)),
            *("--", self._interpreter, "-I", "-S", "-c", _LAUNCHER.format(control=control, limits=self._resources(seconds))),
        ]

    def _resources(self, seconds: float) -> dict[str, tuple[int, int]]:
        """What the kernel counts of each process, by its names; soft limits and hard ones."""
        most, whole = self.limits, max(1, round(seconds))
        same = {"AS": most.memory, "NPROC": most.processes, "FSIZE": most.disk, "NOFILE": most.open_files}
        none = dict.fromkeys(("CORE", "MEMLOCK", "MSGQUEUE"), 0)
        return {"RLIMIT_CPU": (whole, whole + 1)} | {f"RLIMIT_{name}": (limit, limit) for name, limit in (same | none).items()}


def _is_open(path: Path) -> bool:
    """Whether the one who runs the code may read it: ourselves, or nobody in place of root."""
    if os.geteuid() != 0:
        return os.access(path, os.R_OK | os.X_OK)
    return path.exists() and all(one.stat().st_mode & 0o005 == 0o005 for one in (path, *path.parents))


def _version(interpreter: Path) -> tuple[int, ...]:
    """Of a Python, major and minor; () if there is none."""
    command = [str(interpreter), "-I", "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        return tuple(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))
    except (OSError, subprocess.CalledProcessError):
        return ()


def _beside_usr(name: str) -> list[str]:
    """A folder of the system that may be a link into /usr."""
    path = Path("/", name)
    if path.is_symlink():
        return ["--symlink", os.readlink(path), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []
