"""Many requests to a running server, and what they leave behind."""

from __future__ import annotations

import collections
import json
import os
import queue
import re
import threading
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisWarning

from fuzzing.damage import Ask
from fuzzing.routes import World, asks
from fuzzing.send import HANGS, Answer, send
from fuzzing.values import MODEL

WORKERS = 8
ROUND = 50  # requests drawn with one seed; in longer rounds hypothesis varies what it has
SLACK = 6  # descriptors that a database may have opened late
POOLS = 24  # threads of the pools of a server, which begin when they are needed and stay


def _draw(number: int, first_seed: int, take: Callable[[Ask], None]) -> None:
    @seed(first_seed)
    @settings(max_examples=number, phases=[Phase.generate], deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(asks())
    def draw(ask: Ask) -> None:
        take(ask)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)
        draw()


@dataclass
class Report:
    counts: collections.Counter = field(default_factory=collections.Counter)  # of (route, status)
    failures: list[tuple[Ask, Answer]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # what should be gone

    @property
    def requests(self) -> int:
        return self.counts.total()

    def routes(self) -> dict[str, collections.Counter]:
        """How often each status came, by route."""
        found: dict[str, collections.Counter] = {}
        for (route, status), number in sorted(self.counts.items()):
            found.setdefault(route, collections.Counter())[status] += number
        return found

    def described(self) -> str:
        """What is wrong, each with the request that shows it."""
        lines = [f"{a.method} {a.path[:200]} {a.headers} {a.framing}\n  {a.body[:600]!r}\n  -> {b.wrong}" for a, b in self.failures[:20]]
        return "\n".join([f"{len(self.failures)} of {self.requests} answers are wrong", *lines, *self.left])


@dataclass(frozen=True)
class State:
    """What a server holds."""

    threads: int
    descriptors: int
    waiting: int
    rows: int
    pages: int

    @property
    def busy(self) -> bool:
        """Whether the engine works or holds something."""
        return bool(self.waiting or self.rows or self.pages)

    def exceeds(self, before: State) -> bool:
        return self.threads > before.threads + POOLS or self.descriptors > before.descriptors + SLACK

    def __str__(self) -> str:
        return ", ".join(f"{number} {name}" for name, number in vars(self).items())


class Target:
    """A server with its process."""

    def __init__(self, port: int, pid: int):
        self.address, self.pid, self.world = ("127.0.0.1", port), pid, World()

    def fuzz(self, number: int, first_seed: int = 0) -> Report:
        """Send that many requests, a third of them before the server's state is looked at for the first time."""
        report = Report()
        self._send(number // 3, first_seed, report)
        before = self.settled()
        self._send(number - number // 3, first_seed + 1, report)
        after = self.settled(before)
        if after.exceeds(before):
            report.left.append(f"left behind: {after}; there were {before}")
        if after.busy:
            report.left.append(f"still in the engine: {after}")
        return report

    def settled(self, before: State | None = None) -> State:
        """The state when all that was made is deleted and nothing runs any more. before: what it comes back to, some time later, since
        threads of pools end when nobody has needed them for a while."""
        self._delete_all()
        for _ in range(300):
            state = self.state()
            if not state.busy and (before is None or not state.exceeds(before)):
                break
            time.sleep(0.1)
        return state

    def state(self) -> State:
        text = self._get("/metrics").decode()
        waiting, rows, pages = (
            sum(int(float(value)) for value in re.findall(rf"^pollux_{name}\{{.*\}} (\S+)$", text, re.M))
            for name in ("waiting", "rows", "pages_used")
        )
        process = f"/proc/{self.pid}"
        return State(len(os.listdir(f"{process}/task")), len(os.listdir(f"{process}/fd")), waiting, rows, pages)

    def _send(self, number: int, first_seed: int, report: Report) -> None:
        waiting: queue.Queue[Ask | None] = queue.Queue(2 * WORKERS)
        lock = threading.Lock()

        def work() -> None:
            while (ask := waiting.get()) is not None:
                ask = self.world.resolved(ask)
                answer = send(self.address, ask)
                self._note(ask, answer)
                with lock:
                    report.counts[ask.route, answer.status] += 1
                    if answer.wrong:
                        report.failures.append((ask, answer))

        workers = [threading.Thread(target=work) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        try:
            for start in range(0, number, ROUND):
                _draw(min(ROUND, number - start), 1000 * first_seed + start // ROUND, waiting.put)
        finally:
            for _ in workers:
                waiting.put(None)
            for worker in workers:
                worker.join()

    def _note(self, ask: Ask, answer: Answer) -> None:
        """Keep the name of what the request made, for others to use it."""
        if not ask.makes or answer.status != 200:
            return
        if ask.makes == "uploads":
            if url := answer.headers.get("x-goog-upload-url"):
                self.world.names["uploads"].append(urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["upload_id"][0])
            return
        try:
            made = json.loads(answer.body)
        except ValueError:
            return  # a stream of events
        made = made.get("file", made)
        if name := str(made.get("name") or made.get("id") or "").rpartition("/")[2]:
            self.world.names[ask.makes].append(name)

    def _delete_all(self) -> None:
        for name in self.world.names["operations"]:
            self._get(f"/v1beta/models/{MODEL}/operations/{name}", "DELETE")
        for kind in ("files", "cachedContents", "batches"):
            while found := next(iter(json.loads(self._get(f"/v1beta/{kind}?pageSize=100")).values()), None):
                for one in found if isinstance(found, list) else ():
                    self._get(f"/v1beta/{one['name']}", "DELETE")
        for name in self.world.names["fileSearchStores"]:
            self._get(f"/v1beta/fileSearchStores/{name}?force=true", "DELETE")
        for name in self.world.names["interactions"]:
            self._get(f"/v1beta/interactions/{name}", "DELETE")
        for name in self.world.names["uploads"]:
            self._get(f"/upload/v1beta/files?upload_id={name}", "POST", {"X-Goog-Upload-Command": "cancel"})

    def _get(self, path: str, method: str = "GET", headers: dict[str, str] = {}) -> bytes:  # noqa: B006
        request = urllib.request.Request(f"http://localhost:{self.address[1]}{path}", headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=HANGS) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            return error.read()
