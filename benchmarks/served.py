"""`pollux serve` in a process of its own, and virtual environments for programs that ask it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

ANSWER = 512  # tokens; a small model that is asked for JSON goes on as long as it may
ALIASES = ("gemini-*", "imagen-*", "veo-*-preview", "veo-2.0-*", "test-model*")  # names that programs ask the Gemini API for


@contextmanager
def served(folder: str | Path, *flags: str, output: Any = sys.stderr) -> Iterator[str]:
    """The URL of a server on a free port that is ready; it and its data are gone in the end. output: where all that it writes goes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "pollux.cli", "serve", str(folder), "--port", str(port), "--data", data, *flags]
        server = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"NO_PROXY": "*"})
        try:
            while not _ready(url):
                if server.poll() is not None:
                    raise RuntimeError(f"pollux serve {folder} ended with exit code {server.returncode} before it was ready")
                time.sleep(0.2)
            yield url
        finally:
            server.terminate()
            server.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except OSError:
        return False


def gemini(folder: str, server: str) -> AbstractContextManager[str]:
    """The URL of `server`, or of one with the model of the folder under the names of Gemini's. Raises ValueError unless one is given."""
    if bool(folder) == bool(server):
        raise ValueError("give either the folder of a model or --server URL")
    if server:
        return nullcontext(server.rstrip("/"))
    flags = ["--max-output-tokens", str(ANSWER), *(word for alias in ALIASES for word in ("--alias", alias))]
    return served(folder, *flags, *(["--code-execution"] if shutil.which("bwrap") else []))


def environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """The interpreter of a virtual environment with these packages, made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python
