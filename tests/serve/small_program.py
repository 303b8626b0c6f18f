"""`pollux serve` with a tiny model in a process of its own, ready to answer."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from small_model import small_folder


@contextlib.contextmanager
def serving(data: Path | None = None, *flags: str, log: Path = Path(os.devnull)) -> Iterator[tuple[int, subprocess.Popen]]:
    """Its port and its process, which is killed at the end if it still lives. data: its folder, by default one for now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as place, open(log, "wb") as errors:
        command = [sys.executable, "-m", "pollux.cli", "serve", str(small_folder(Path(place) / "small" / "model")), "--port", str(port)]
        command += ["--data", str(data or Path(place) / "data"), "--max-rows", "4", "--cache-tokens", "8192", *flags]
        environment = os.environ | {"NO_PROXY": "*", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        try:
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as answer:
                    if answer.status == 200:
                        break
                if server.poll() is not None:
                    raise RuntimeError(f"pollux serve ended before it was ready: {log.read_text()}")
                time.sleep(0.2)
            yield port, server
        finally:
            server.kill()
            server.wait()
