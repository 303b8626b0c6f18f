"""Whether the memory of a server stays flat: requests of all kinds for a while, and how much the process holds meanwhile.

    .venv/bin/python benchmarks/soak.py --minutes 10

Starts `pollux serve` with a tiny model of random weights and keeps some clients busy: answers whole and streamed, clients that leave, text
of many lengths, pictures, sounds and clips, schemas, calls, drawings, embeddings, uploads, cached contents, interactions, batches, live
sessions, mistakes. Prints the number of each, the memory over time, and its slope over the second half, in MiB for each 1,000 requests.
"""

from __future__ import annotations

import base64
import collections
import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "serve"))

from fuzzing.damage import Ask  # noqa: E402
from fuzzing.run import Target  # noqa: E402
from fuzzing.send import Answer, send  # noqa: E402
from fuzzing.values import SCHEMAS, media  # noqa: E402
from small_program import serving  # noqa: E402

CLIENTS = 8
KINDS = (
    *("answer", "stream", "medium", "constrained", "embedding", "chat", "file", "cache", "interaction", "batch", "live", "mistake"),
    "answer",
)
HOUR = 3600  # requests of an hour in which one comes each second
MODEL = "/v1beta/models/pollux"
LIVE = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
WEATHER = {"functionDeclarations": [{"name": "weather", "parameters": SCHEMAS[0]}]}


class Client:
    """One that sends requests of all kinds, one after the other."""

    def __init__(self, address: tuple[str, int], seed: int, counts: collections.Counter):
        self.address, self.random, self.counts = address, random.Random(seed), counts

    def run(self, until: float, kinds: tuple[str, ...], errors: list[str]) -> None:
        try:
            while time.monotonic() < until and not errors:
                kind = self.random.choice(kinds)
                getattr(self, kind)()
                self.counts[kind] += 1
        except RuntimeError as error:
            errors.append(str(error))

    def text(self) -> str:
        return "".join(self.random.choice("abcdefgh red blue") for _ in range(self.random.choice((3, 30, 150))))

    def asked(self, *parts: Any, **settings: Any) -> dict:
        config = {"maxOutputTokens": self.random.randint(1, 40), "temperature": 1.0} | settings
        return {"contents": [{"role": "user", "parts": [*parts, {"text": self.text()}]}], "generationConfig": config}

    def send(self, path: str, body: Any, method: str = "POST", expected: tuple[int, ...] = (200,), **more: Any) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = send(self.address, Ask(path, method, path, body=data, **more))
        if answer.wrong or answer.status not in expected:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.wrong} {answer.body[:300]!r}")
        return answer

    def answer(self) -> None:
        self.send(f"{MODEL}:generateContent", self.asked(candidateCount=self.random.choice((1, 1, 3))))

    def stream(self) -> None:
        self.send(f"{MODEL}:streamGenerateContent?alt=sse", self.asked(responseLogprobs=True, logprobs=3))

    def medium(self) -> None:
        kind, data = self.random.choice(sorted(media().items()))
        part = {"inlineData": {"mimeType": kind, "data": base64.b64encode(data).decode()}}
        self.send(f"{MODEL}:generateContent", self.asked(part))

    def constrained(self) -> None:
        if self.random.random() < 0.5:
            schema = {"type": "STRING", "enum": [self.text() for _ in range(3)]}
            self.send(f"{MODEL}:generateContent", self.asked(responseMimeType="application/json", responseSchema=schema))
        else:
            body = {"tools": [WEATHER], "toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}
            self.send(f"{MODEL}:generateContent", self.asked(responseModalities=["TEXT"], maxOutputTokens=80) | body)

    def embedding(self) -> None:
        self.send(f"{MODEL}:embedContent", {"content": {"parts": [{"text": self.text()}]}})

    def chat(self) -> None:
        body = {"model": "pollux", "messages": [{"role": "user", "content": self.text()}], "max_tokens": 10, "stream": True}
        self.send("/v1/chat/completions", body, form="openai")

    def file(self) -> None:
        headers = (("X-Goog-Upload-Protocol", "raw"), ("Content-Type", "image/png"))
        made = json.loads(self.send("/upload/v1beta/files", media()["image/png"], headers=headers).body)["file"]
        part = {"fileData": {"fileUri": made["uri"], "mimeType": "image/png"}}
        self.send(f"{MODEL}:generateContent", self.asked(part))
        self.send(f"/v1beta/{made['name']}", b"", "DELETE")

    def cache(self) -> None:
        contents = [{"role": "user", "parts": [{"text": self.text() * 2}]}]
        made = json.loads(self.send("/v1beta/cachedContents", {"model": "pollux", "contents": contents}, expected=(200, 429)).body)
        if "name" in made:
            self.send(f"{MODEL}:generateContent", self.asked() | {"cachedContent": made["name"]})
            self.send(f"/v1beta/{made['name']}", b"", "DELETE")

    def interaction(self) -> None:
        body = {"model": "pollux", "input": self.text(), "generation_config": {"max_output_tokens": 10}}
        made = json.loads(self.send("/v1/interactions", body, form="interactions").body)
        self.send("/v1/interactions", body | {"previous_interaction_id": made["id"], "stream": True, "store": False}, form="interactions")
        self.send(f"/v1/interactions/{made['id']}", b"", "DELETE", form="interactions")

    def batch(self) -> None:
        requests = [{"request": self.asked()} for _ in range(3)]
        body = {"batch": {"inputConfig": {"requests": {"requests": requests}}}}
        name = json.loads(self.send(f"{MODEL}:batchGenerateContent", body).body)["name"]
        for _ in range(200):
            if json.loads(self.send(f"/v1beta/{name}", b"", "GET").body)["done"]:
                break
            time.sleep(0.05)
        self.send(f"/v1beta/{name}", b"", "DELETE")

    def live(self) -> None:
        """Leaves in the middle of its answer."""
        setup = {"setup": {"model": "pollux", "generationConfig": {"maxOutputTokens": 400}}}
        turn = {"clientContent": {"turns": [{"role": "user", "parts": [{"text": self.text()}]}], "turnComplete": True}}
        self.send(LIVE, json.dumps([json.dumps(setup), json.dumps(turn)]).encode(), "WEBSOCKET", expected=(1000,))

    def mistake(self) -> None:
        self.send(f"{MODEL}:generateContent", self.asked(temperature=9), expected=(400,))


def memory(pid: int) -> float:
    """MiB that a process holds."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(minutes: float = 10.0, every: float = 15.0, kinds: tuple[str, ...] = KINDS, seed: int = 0) -> None:
    """Keep a server busy and print what it holds.

    Args:
        minutes: How long.
        every: Seconds between two readings of the memory.
        kinds: Of requests.
        seed: Of the requests.
    """
    counts: collections.Counter = collections.Counter()
    errors: list[str] = []
    with serving() as (port, process):
        begun = time.monotonic()
        end = begun + 60 * minutes
        clients = [Client(("127.0.0.1", port), seed * 1000 + i, counts) for i in range(CLIENTS)]
        threads = [threading.Thread(target=client.run, args=(end, kinds, errors)) for client in clients]
        for thread in threads:
            thread.start()
        readings = []
        while time.monotonic() < end and not errors:
            time.sleep(min(every, end - time.monotonic() + 0.01))
            readings.append((counts.total(), memory(process.pid)))
            print(f"{time.monotonic() - begun:6.0f} s {readings[-1][0]:7} requests {readings[-1][1]:8.1f} MiB", flush=True)
        for thread in threads:
            thread.join()
        print(", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())))
        print(f"{counts.total()} requests, {counts.total() / HOUR:.1f} x those of an hour with one a second")
        if len(readings) > 3:
            late = np.array(readings[len(readings) // 2 :])
            slope = np.polyfit(late[:, 0], late[:, 1], 1)[0] * 1000
            print(f"second half: {slope:+.2f} MiB for each 1,000 requests; from {late[0, 1]:.0f} to {late[-1, 1]:.0f} MiB")
        print(f"at rest: {Target(port, process.pid).settled()}")
    if errors:
        raise SystemExit("\n".join(errors))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
