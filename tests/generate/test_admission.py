"""Who gets pages and when: contexts, priorities, long prompts, and what becomes of those for whom there are none."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from pollux.content import Image, Text
from pollux.generate import requests, rows
from pollux.generate.drafter import DraftModel
from pollux.generate.engine import Engine
from pollux.generate.requests import Cancelled, DeadlineExceeded, Overloaded, Request
from pollux.generate.rows import longer
from pollux.generate.sampler import Sampling
from pollux.generate.settings import EngineSettings

GREEDY = Sampling(temperature=0, max_output_tokens=8)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model([dict(num_kv_heads=1, window=5), dict(position="none", log_n_native=4)], [{}, {}])


def engine_of(model, **settings):
    return Engine(model.params, model.config, model.vocabulary, model.codec, None, EngineSettings(**{"chunk": 64} | settings))


def pages_used(engine):
    return sum(len(pool) - pool.available for pool in engine._batch.dispatcher.memory.ledger.pools.values())


def run(engine):
    while engine._batch.busy:
        engine._batch.step()


def of_length(model, tokens):
    """A prompt of exactly so many tokens."""
    whole = model.prompt("the star " * tokens)
    cut = {name: getattr(whole, name)[:tokens] for name in ("ids", "target", "position", "branch", "group", "modality", "pool")}
    return replace(whole, **cut)


@pytest.mark.parametrize("tokens", [63, 64, 65])
def test_the_next_turn_finds_all_pages_wherever_the_prompt_ended(model, tokens):
    engine, prompt = engine_of(model), of_length(model, tokens)
    (result,) = engine.generate([prompt], [Sampling(seed=1, max_output_tokens=70)])
    assert len(result.ids) == 70
    follow_up = longer(prompt, [*result.ids.tolist(), 20, 21])
    assert engine.generate([follow_up], [GREEDY])[0].usage.cached == (tokens + 69) // 32 * 32


def test_a_context_for_which_there_is_no_room_keeps_nothing(model):
    engine, begun = engine_of(model, cache_tokens=512), of_length(model, 150)
    context = engine.hold(longer(of_length(model, 10), [20] * 200))
    engine.generate([begun], [GREEDY])
    with pytest.raises(Overloaded, match="no room for this context"):
        engine.hold(longer(begun, [21] * 250))
    context.release()
    engine._batch.step()
    assert pages_used(engine) == 0


def test_contexts_may_be_asked_for_while_another_is_admitted(model, monkeypatch):
    engine = engine_of(model)
    memory, lease, more = engine._batch.dispatcher.memory, engine._batch.dispatcher.memory.lease, []

    def slow(reading):
        if not more:
            more.append(threading.Thread(target=engine._batch.hold, args=(of_length(model, 70),)))
            more[0].start()
            more[0].join()
        return lease(reading)

    monkeypatch.setattr(memory, "lease", slow)
    assert engine.hold(of_length(model, 100)).tokens == 96
    run(engine)


def test_a_context_whose_medium_is_longer_than_a_chunk_waits_for_those_who_write(make_model):
    model = make_model()
    prompt = of_length(model, 150)
    object.__setattr__(prompt, "group", np.where((np.arange(150) > 2) & (np.arange(150) < 100), 1, 0).astype(np.int32))
    expected = engine_of(model, chunk=256).generate([prompt], [GREEDY])[0].ids.tolist()
    engine = engine_of(model)
    running = engine.submit(Request(model.prompt("a"), Sampling(max_output_tokens=60)))
    engine._batch.step()
    engine._batch.step()
    context = engine.hold(prompt)
    assert context.tokens == 128 and running.results(0)
    (found,) = engine.generate([prompt], [GREEDY])
    assert found.ids.tolist() == expected and found.usage.cached == 128
    context.release()


def test_a_draft_of_the_same_shape_shares_no_spilled_pages_with_its_model(make_model, tmp_path):
    """Pages are named by the parameters, and two sets of them may have one config."""
    model = make_model()
    weights = {**model.params, "embed": model.params["embed"][::-1].copy()}
    other = DraftModel(weights, model.config, 4)

    def engine(**more):
        settings = EngineSettings(chunk=64, cache_tokens=512, max_rows=2, **more)
        return Engine(model.params, model.config, model.vocabulary, None, other, settings)

    prompts = [of_length(model, 200), *(longer(of_length(model, 10), [20 + i] * 290) for i in range(4))]
    expected = engine().generate(prompts[:1], [GREEDY])[0].ids.tolist()
    spilling = engine(spill=tmp_path)
    for prompt in prompts:
        spilling.generate([prompt], [GREEDY])
    (again,) = spilling.generate(prompts[:1], [GREEDY])
    assert again.usage.cached > 100 and again.ids.tolist() == expected
    memory, draft = spilling._batch.dispatcher.memory, spilling._batch.dispatcher.draft
    assert memory._shelf._key != draft._shelf._key
    spilling.close()


def test_what_comes_while_the_engine_closes_is_refused_and_nobody_waits_for_ever(model):
    engine = engine_of(model)
    engine.start()
    prompt = model.prompt("the star")
    engine.generate([prompt], [GREEDY])
    ended = []

    def ask():
        while True:
            try:
                engine.submit(Request(prompt, GREEDY)).results(60)
                engine.hold(prompt)
            except Cancelled:
                return ended.append(True)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    engine.close()
    for thread in threads:
        thread.join(60)
    assert len(ended) == 4
    with pytest.raises(Cancelled, match="closing"):
        engine.hold(prompt)


@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_a_long_prompt_is_read_no_further_once_nobody_waits_for_it(model, end):
    engine = engine_of(model, cache_tokens=8192)
    deadline = time.monotonic() + 3600 if end == "deadline" else None
    job = engine.submit(Request(of_length(model, 4000), GREEDY, deadline=deadline))
    read, memory = [], engine._batch.dispatcher.memory
    real = memory.read

    def watched(readings, numbers):
        read.append(len(readings))
        if len(read) == 3 and end == "cancel":
            job.cancel()
        elif len(read) == 3:
            object.__setattr__(job.request, "deadline", time.monotonic() - 1)
        return real(readings, numbers)

    memory.read = watched
    run(engine)
    with pytest.raises(Cancelled if end == "cancel" else DeadlineExceeded):
        job.results(0)
    assert len(read) == 3 and pages_used(engine) == 0


def test_a_short_prompt_does_not_wait_until_a_long_one_is_read(model):
    engine = engine_of(model, cache_tokens=8192)
    long, short = engine.submit(Request(of_length(model, 4000), GREEDY)), engine.submit(Request(of_length(model, 100), GREEDY))
    while not short.done:
        engine._batch.step()
    (reading,) = [row.reading for row in engine._batch.rows]
    assert reading.filled < 1500 and not long.done
    run(engine)
    assert [job.results(0)[0].ids.tolist() for job in (long, short)] == [
        engine_of(model).generate([job.request.prompt], [GREEDY])[0].ids.tolist() for job in (long, short)
    ]


class Breaks:
    """A constraint of anything, that fails at its second token in the first candidate."""

    def __init__(self, size, made):
        self._size, self._made, self._seen = size, made, 0
        made.append(self)

    def fresh(self):
        return Breaks(self._size, self._made)

    def allowed(self):
        return np.ones(self._size, bool)

    def accept(self, token):
        self._seen += 1
        if self is self._made[1] and self._seen == 2:
            raise ValueError("too much work")


def test_a_candidate_that_fails_ends_its_job_with_all_candidates(model):
    engine = engine_of(model)
    constraint = Breaks(model.config.vocab_size, [])
    job = engine.submit(Request(model.prompt("a"), Sampling(seed=3, max_output_tokens=200), constraint=constraint, candidates=3))
    other = engine.submit(Request(model.prompt("a"), GREEDY))
    steps = 0
    while engine._batch.busy:
        engine._batch.step()
        steps += 1
    assert steps < 100, "the others of the job went on"
    for _ in range(2):
        with pytest.raises(ValueError, match="too much work"):
            job.results(0)
    assert other.results(0) and pages_used(engine) == 0


def test_what_contexts_leave_no_room_for_is_refused_instead_of_tried_for_ever(model):
    engine = engine_of(model, cache_tokens=512)
    context = engine.hold(of_length(model, 400))
    job = engine.submit(Request(longer(of_length(model, 2), [20] * 200), GREEDY))
    for _ in range(3):
        engine._batch.step()
    assert not engine._batch.busy
    with pytest.raises(Overloaded, match="no room"):
        job.results(0)
    context.release()
    assert engine.submit(job.request) and run(engine) is None and pages_used(engine) == 0


def test_the_media_of_a_prompt_that_waits_are_looked_at_once(model, monkeypatch):
    looked, real = [], requests.media_content
    monkeypatch.setattr(requests, "media_content", lambda prompt: looked.append(prompt) or real(prompt))
    monkeypatch.setattr(rows, "media_content", lambda prompt: looked.append(prompt) or real(prompt))
    engine = engine_of(model, cache_tokens=512)
    first = engine.submit(Request(model.prompt("a"), Sampling(max_output_tokens=400, seed=1), excluded=model.vocabulary.stops))
    while first.output_tokens < 350:
        engine._batch.step()
    picture = Image(np.zeros((16, 24, 3), np.uint8))
    second = engine.submit(Request(model.prompt([picture, "the star " * 60]), GREEDY, candidates=3))
    run(engine)
    assert first.results(0) and len(second.results(0)) == 3
    assert looked == [first.request.prompt, second.request.prompt]


def test_an_urgent_request_goes_before_further_candidates_of_others(model):
    engine = engine_of(model, max_rows=1)
    sampling = Sampling(seed=1, max_output_tokens=40)
    patient = engine.submit(Request(model.prompt("a"), sampling, candidates=4, priority=1))
    engine._batch.step()
    urgent = engine.submit(Request(model.prompt("blue"), sampling))
    while not urgent.done:
        engine._batch.step()
    assert sum(piece.finish_reason != "" for piece in patient.take()) == 1
    run(engine)
    assert patient.results(0)


def test_the_least_urgent_gives_way_however_early_it_came(model):
    engine, prompt, stops = engine_of(model, cache_tokens=384), model.prompt("the star"), model.vocabulary.stops
    sampling = Sampling(temperature=1.2, max_output_tokens=250)
    patient, urgent = (Request(prompt, replace(sampling, seed=p), priority=p, excluded=stops) for p in (1, 0))
    jobs = [engine.submit(patient)]
    engine._batch.step()
    jobs.append(engine.submit(urgent))
    while not any(job.done for job in jobs):
        engine._batch.step()
    assert [job.done for job in jobs] == [False, True]
    run(engine)
    alone = engine_of(model)
    for job in jobs:
        expected = alone.submit(job.request)
        run(alone)
        assert job.results(0)[0].ids.tolist() == expected.results(0)[0].ids.tolist()
        assert "".join(p.text for piece in job.take() for p in piece.parts if isinstance(p, Text)) == expected.results(0)[0].text
