"""A real server over a real socket with a store in a folder: on a thread of the test, or as a program of its own that can be killed.

As a program: python stored_server.py FOLDER [model]; prints its address when it answers.
"""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn

from pollux.serve.app import create_app
from pollux.serve.leases import LEASE_SECONDS
from pollux.serve.server import Served, Server, Settings
from pollux.serve.store import Store
from pollux.serve.upkeep import Upkeep


class Clock:
    """Seconds since 1970, which a test may let pass."""

    def __init__(self):
        self.ahead = 0.0
        self.frozen: float | None = None  # the time, if it stands still

    def __call__(self) -> float:
        return time.time() + self.ahead if self.frozen is None else self.frozen


def until(condition) -> None:
    """Wait for something that happens on another thread or in another process."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it has not happened in 30 seconds")


def error_of(response) -> tuple[int, str]:
    """The code of HTTP and the status in an error of the API."""
    return response.status_code, response.json()["error"]["status"]


@dataclass(eq=False)
class Running:
    url: str
    server: Server
    store: Store
    clock: Clock
    upkeep: Upkeep


@contextlib.contextmanager
def serving(
    folder, models=None, settings=Settings(), wrap=lambda app: app, objects="", database="", lease=LEASE_SECONDS, **parts
) -> Iterator[Running]:
    """A server in this process; wrap: what stands before its application; objects, database, lease: what Store knows of other servers;
    parts: others of Server."""
    clock = Clock()
    store = Store(folder, clock, objects, database, lease)
    server = Server(models or {}, store=store, settings=settings, **parts)
    app = create_app(server)
    listening = socket.create_server(("127.0.0.1", 0))
    listener = uvicorn.Server(uvicorn.Config(wrap(app), log_level="warning", lifespan="on"))
    thread = threading.Thread(target=listener.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until(lambda: listener.started or not thread.is_alive())
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", server, store, clock, app.state.upkeep)
    finally:
        listener.should_exit = True
        thread.join()
        store.close()
        server.close()


@contextlib.contextmanager
def program(folder, *options: str, file: str = __file__, arguments=()) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server in a process of its own, and its address; killed at the end if it still lives. options: what stands before Python."""
    process = subprocess.Popen([*options, sys.executable, file, str(folder), *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    models = {}
    if "model" in sys.argv[2:]:
        from small_model import small_model

        models["small"] = Served("small", small_model(), None)
    with serving(sys.argv[1], models) as running:
        print(running.url, flush=True)
        threading.Event().wait()
