"""Does company change an answer? Requests of all kinds come, leave and crowd each other out, and each is compared with itself alone.

    .venv/bin/python benchmarks/stress.py runs/quickstart/model --minutes 10

First each of a number of random requests (pictures, sounds, schemas, choices, penalties, guided drawings, logprobs, several candidates) is
answered alone. Then they arrive at random at an engine whose cache has room for few of them, with priorities, owners, deadlines, people who
leave, contexts that come and go, and pages that are spilled. Exit code 1 if one token is another than alone, if one who left was written
something else before, or if a page is lost.
"""

from __future__ import annotations

import collections
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

import pollux
from pollux.compilation import use_compilation_cache
from pollux.content import Audio, Image
from pollux.generate.constrain import choice, json_schema
from pollux.generate.ending import Ending
from pollux.generate.engine import Engine
from pollux.generate.model import Model
from pollux.generate.requests import Cancelled, DeadlineExceeded, Job, Overloaded, Request
from pollux.generate.sampler import Sampling
from pollux.generate.settings import EngineSettings
from pollux.tokens.sequence import Sequence

Answers = list[list[int]]  # ids of each candidate
WORDS = "the small red ball is left of a large green box and above one blue star what colour how many".split()
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "sizes": {"type": "array", "items": {"type": "integer"}, "maxItems": 4}},
    "required": ["name"],
}


@dataclass(frozen=True)
class Settings:
    minutes: float = 10.0  # of arrivals, after each was answered alone
    requests: int = 80  # different ones
    seed: int = 0  # of the requests and of when they come
    max_rows: int = 12  # answers written at a time
    cache_tokens: int = 2048  # room of the cache; a prompt has 10 to some 600


def prompts(model: Model, chance: random.Random) -> list[Sequence]:
    """Some that begin alike, with and without media, of ten to some six hundred tokens."""
    pictures = [Image(np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8)) for i in range(3)]
    sounds = [Audio(np.random.default_rng(i).normal(0, 0.1, 16000).astype(np.float32), 16000) for i in range(2)]
    beginnings: list[list] = [[], [" ".join(chance.choices(WORDS, k=150))], [" ".join(chance.choices(WORDS, k=350))]]
    if model.config.soft_inputs:
        beginnings += [[picture] for picture in pictures] + [[sound] for sound in sounds] + [[pictures[0], beginnings[1][0], sounds[0]]]
    return [model.prompt([*chance.choice(beginnings), " ".join(chance.choices(WORDS, k=chance.randint(1, 60)))]) for _ in range(40)]


def requests(model: Model, number: int, chance: random.Random) -> list[Request]:
    vocabulary, size, made = model.vocabulary, model.config.vocab_size, []
    assert vocabulary is not None
    known = prompts(model, chance)
    for seed in range(number):
        most = chance.choice([1, 5, 17, 40, 90, 160])
        sampling = Sampling(temperature=chance.choice([0, 0.8, 1.2]), top_p=chance.choice([1, 0.9]), seed=seed, max_output_tokens=most)
        request = Request(chance.choice(known), sampling, candidates=chance.choice([1, 1, 1, 3]), top_logprobs=chance.choice([0, 0, 3]))
        kind = chance.choice(["plain"] * 4 + ["penalized", "schema", "choice", "guided", "stop"])
        if kind == "penalized":
            request = replace(request, sampling=replace(sampling, frequency_penalty=0.5, repetition_penalty=1.1))
        elif kind == "schema":
            request = replace(request, constraint=Ending(json_schema(SCHEMA, vocabulary, size), vocabulary, size, most))
        elif kind == "choice":
            request = replace(request, constraint=choice(["a red ball", "a blue star", "nothing"], vocabulary, size))
        elif kind == "guided" and model.codec is not None:
            request = replace(request, sampling=replace(sampling, guidance=1.5), candidates=1)
        elif kind == "stop":
            request = replace(request, sampling=replace(sampling, stop=("the ", "red", "?")))
        made.append(request)
    return made


def written(job: Job) -> Answers:
    """The ids of each candidate so far."""
    ids: Answers = [[] for _ in range(job.request.candidates)]
    for piece in job.take():
        ids[piece.candidate] += piece.ids
    return ids


def alone(model: Model, asked: list[Request]) -> list[Answers]:
    engine = model.engine(EngineSettings(max_rows=1, cache_tokens=4096))
    engine.start()
    made = []
    for number, request in enumerate(asked):
        made.append([result.ids.tolist() for result in engine.submit(request).results(600)])
        print(f"\ralone: {number + 1} of {len(asked)}", end="", file=sys.stderr, flush=True)
    engine.close()
    return made


class Crowd:
    """Asks `asked` in random order until `end`, and counts what became of it."""

    def __init__(self, engine: Engine, asked: list[Request], expected: list[Answers], end: float):
        self.engine, self.asked, self.expected, self.end = engine, asked, expected, end
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def ask(self, seed: int) -> None:
        """What one of many people does."""
        chance = random.Random(seed)
        while time.monotonic() < self.end:
            number = chance.randrange(len(self.asked))
            deadline = time.monotonic() + chance.choice([0.01, 0.3, 1.5]) if chance.random() < 0.15 else None
            request = replace(self.asked[number], owner=f"owner {seed % 5}", priority=chance.choice([0, 0, 1]), deadline=deadline)
            try:
                job = self.engine.submit(request)
            except Overloaded:
                self.note("queue full")
                time.sleep(0.05)
                continue
            if chance.random() < 0.2:
                job._ended.wait(chance.expovariate(3))
                job.cancel()
            try:
                job.results(1800)
                self.note("answered", number, written(job) == self.expected[number], f"request {number} was answered otherwise than alone")
            except (Cancelled, DeadlineExceeded, Overloaded) as error:
                begun = all(whole[: len(some)] == some for some, whole in zip(written(job), self.expected[number], strict=True))
                self.note(type(error).__name__, number, begun, f"request {number}, which ended early, was begun otherwise than alone")
            except Exception as error:
                self.note(type(error).__name__, number, False, f"request {number}: {error!r}")
            if chance.random() < 0.3:
                time.sleep(chance.expovariate(4))

    def hold(self, seed: int) -> None:
        """Contexts that come and go."""
        chance = random.Random(seed)
        while time.monotonic() < self.end:
            try:
                context = self.engine.hold(chance.choice(self.asked).prompt)
                self.note("contexts")
                time.sleep(chance.expovariate(1))
                context.release()
            except Overloaded:
                self.note("no room for a context")
            time.sleep(chance.expovariate(1))

    def note(self, what: str, number: int = -1, right: bool = True, message: str = "") -> None:
        with self._lock:
            self.counts[what] += 1
            if not right:
                self.wrong.append(message)
                print(f"\n{message}", file=sys.stderr, flush=True)


def main(model: tyro.conf.Positional[Path], settings: tyro.conf.OmitArgPrefixes[Settings] = Settings()) -> None:
    """Exit code 1 if company changed an answer."""
    use_compilation_cache()
    loaded, chance = pollux.load(model), random.Random(settings.seed)
    asked = requests(loaded, settings.requests, chance)
    expected = alone(loaded, asked)
    with tempfile.TemporaryDirectory() as folder:
        engine = loaded.engine(
            EngineSettings(
                max_rows=settings.max_rows, cache_tokens=settings.cache_tokens, max_queue=40, spill=Path(folder), spill_bytes=64 << 20
            )
        )
        engine.start()
        gave_way = 0
        give_way = engine._batch._give_way

        def counted() -> None:
            nonlocal gave_way
            gave_way += 1
            give_way()

        engine._batch._give_way = counted  # type: ignore[method-assign]
        crowd = Crowd(engine, asked, expected, time.monotonic() + 60 * settings.minutes)
        people = [threading.Thread(target=crowd.ask, args=(seed,)) for seed in range(24)]
        people.append(threading.Thread(target=crowd.hold, args=(1000,)))
        for person in people:
            person.start()
        for person in people:
            person.join()
        deadline = time.monotonic() + 60
        while engine._batch.busy and time.monotonic() < deadline:
            time.sleep(0.1)
        stats = engine.stats()
        used = sum(len(pool) - pool.available for pool in engine._batch.dispatcher.memory.ledger.pools.values())
        engine.close()
    print(f"\n{dict(sorted(crowd.counts.items()))}, {gave_way} rows gave way")
    print(f"tokens: {stats.prompt_tokens} read, of which {stats.cached_tokens} were in the cache, {stats.output_tokens} written")
    print(f"{len(crowd.wrong)} wrong answers, {used} pages lost")
    sys.exit(bool(crowd.wrong or used))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
