"""Continuous batching: company, preemption, prefixes and candidates change no answer, and who leaves frees what they had."""

import threading
import time

import numpy as np
import pytest

from pollux.content import Image, Text
from pollux.generate.engine import Engine
from pollux.generate.requests import Cancelled, DeadlineExceeded, Job, Overloaded, Request
from pollux.generate.sampler import Sampling
from pollux.generate.schedule import Queue
from pollux.generate.settings import EngineSettings

WINDOWED = ([dict(num_kv_heads=1, window=5), dict(position="none", log_n_native=4)], [{}, {}])
TEXTS = ["a", "the big red circle is left of the small blue star", "blue", "what colour is the circle?", "the star " * 12]


@pytest.fixture(scope="module")
def windowed(make_model):
    return make_model(*WINDOWED)


def _engine(model, **settings):
    return Engine(model.params, model.config, model.vocabulary, model.codec, None, EngineSettings(**{"chunk": 64} | settings))


def _requests(model, number, **more):
    settings = [Sampling(temperature=1.2, seed=seed, max_output_tokens=10 + 7 * (seed % 5)) for seed in range(number)]
    return [Request(model.prompt(TEXTS[i % len(TEXTS)]), sampling, **more) for i, sampling in enumerate(settings)]


def _alone(engine, request):
    return engine.generate([request.prompt], [request.sampling])[0].ids.tolist()


def _run(engine, jobs):
    while engine._batch.busy:
        engine._batch.step()
    return [job.results()[0].ids.tolist() for job in jobs]


def _pages_used(engine):
    return {kind: len(pool) - pool.available for kind, pool in engine._batch.dispatcher.memory.ledger.pools.items()}


def test_rows_that_come_and_go_write_what_each_writes_alone(windowed):
    requests = _requests(windowed, 24)
    alone = _engine(windowed)
    expected = [_alone(alone, request) for request in requests]
    engine, jobs = _engine(windowed, max_rows=6), []
    for request in requests:  # a new one at every other step, while others are writing
        jobs.append(engine.submit(request))
        engine._batch.step()
        engine._batch.step()
    assert _run(engine, jobs) == expected
    assert set(_pages_used(engine).values()) == {0} and not engine._batch.busy


def test_rows_that_have_to_give_way_write_what_they_would_have_written(windowed):
    requests = [
        Request(windowed.prompt("the star"), Sampling(temperature=1.2, seed=seed, max_output_tokens=150, frequency_penalty=0.2))
        for seed in range(6)
    ]
    alone = _engine(windowed)
    expected = [_alone(alone, request) for request in requests]
    engine = _engine(windowed, cache_tokens=384)
    gave_way = 0
    give_way = engine._batch._give_way

    def counted():
        nonlocal gave_way
        gave_way += 1
        give_way()

    engine._batch._give_way = counted
    jobs = [engine.submit(request) for request in requests]
    assert _run(engine, jobs) == expected
    assert gave_way > 2, "the cache was meant to be too small"
    assert set(_pages_used(engine).values()) == {0}


@pytest.mark.parametrize("pictures", [False, True])
def test_a_prefix_that_is_still_there_is_not_read_again_and_changes_nothing(windowed, pictures):
    engine = _engine(windowed)
    picture = [Image(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8))] * pictures
    long = " ".join(["a big red circle is left of the small blue star"] * 8)
    first, second = (windowed.prompt([*picture, Text(long), Text(end)]) for end in ("what colour", "is it red?"))
    sampling = Sampling(temperature=0, max_output_tokens=12)
    engine.generate([first], [sampling])
    (warm,) = engine.generate([second], [sampling])
    (cold,) = _engine(windowed).generate([second], [sampling])
    assert warm.usage.cached >= 64 and cold.usage.cached == 0
    assert warm.ids.tolist() == cold.ids.tolist()
    if pictures:
        other = windowed.prompt([Image(np.zeros((16, 24, 3), np.uint8)), Text(long)])
        assert engine.generate([other], [sampling])[0].usage.cached == 0, "another picture, another prefix"


def test_an_answer_is_part_of_the_prefix_of_the_next_turn(windowed):
    engine, prompt = _engine(windowed), windowed.prompt("what colour is the circle?")
    (result,) = engine.generate([prompt], [Sampling(temperature=0, max_output_tokens=100)])
    from pollux.generate.rows import longer

    follow_up = longer(prompt, result.ids.tolist())
    assert engine.generate([follow_up], [Sampling(temperature=0, max_output_tokens=1)])[0].usage.cached > len(prompt)


def test_candidates_share_the_prompt_and_differ_by_their_seeds(windowed):
    engine, prompt = _engine(windowed), windowed.prompt(" ".join(["the big red circle"] * 20))
    sampling = Sampling(temperature=1.2, seed=5, max_output_tokens=10)
    job = engine.submit(Request(prompt, sampling, candidates=3))
    while not job.done:
        engine._batch.step()
    results = job.results()
    alone = [_engine(windowed).generate([prompt], [Sampling(temperature=1.2, seed=5 + i, max_output_tokens=10)])[0] for i in range(3)]
    assert [r.ids.tolist() for r in results] == [r.ids.tolist() for r in alone]
    assert len({tuple(r.ids.tolist()) for r in results}) == 3
    assert engine.stats().cached_tokens >= 2 * (len(prompt) - 33)


def test_a_held_prompt_survives_what_would_push_it_out_and_is_free_once_released(windowed):
    engine = _engine(windowed, cache_tokens=512)
    prompt = windowed.prompt(" ".join(["the big red circle"] * 30))
    context = engine.hold(prompt)
    for seed in range(6):
        engine.generate([windowed.prompt(f"{seed} " * 60)], [Sampling(seed=seed, max_output_tokens=20)])
    sampling = Sampling(temperature=0, max_output_tokens=4)
    assert engine.generate([prompt], [sampling])[0].usage.cached == context.tokens > 64
    context.release()
    context.release()  # once more does nothing
    engine._batch.step()
    assert set(_pages_used(engine).values()) == {0}


@pytest.mark.parametrize("words", range(0, 16, 3))
def test_a_held_prompt_may_end_inside_a_picture(windowed, words):
    engine = _engine(windowed)
    picture = Image(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    prompt = windowed.prompt([Text("the " * words), picture, Text("?")])
    context = engine.hold(prompt)
    before, after = prompt.group[context.tokens - 1 : context.tokens + 1].tolist() if context.tokens else (0, 0)
    assert not before or before != after
    sampling = Sampling(temperature=0, max_output_tokens=4)
    (found,), (expected,) = engine.generate([prompt], [sampling]), _engine(windowed).generate([prompt], [sampling])
    assert found.ids.tolist() == expected.ids.tolist() and found.usage.cached == context.tokens
    context.release()


def test_a_cancelled_job_and_one_past_its_deadline_end_and_free_their_rows(windowed):
    engine = _engine(windowed)
    prompt, sampling = windowed.prompt("a"), Sampling(max_output_tokens=4000)
    running, late = engine.submit(Request(prompt, sampling)), engine.submit(Request(prompt, sampling, deadline=time.monotonic() - 1))
    engine._batch.step()
    engine._batch.step()
    assert not running.done and _pages_used(engine) != {0: 0, 5: 0}
    running.cancel()
    engine._batch.step()
    for job, error in ((running, Cancelled), (late, DeadlineExceeded)):
        with pytest.raises(error):
            job.results(0)
    while engine._batch.busy:
        engine._batch.step()
    assert set(_pages_used(engine).values()) == {0}


def test_requests_are_served_by_priority_then_by_owners_in_turn():
    queue, model_free = Queue(100), Sampling()
    order = [("a", 1), ("a", 1), ("a", 1), ("b", 1), ("c", 0), ("b", 1)]
    jobs = [Job(Request(None, model_free, owner=owner, priority=priority)) for owner, priority in order]
    for job in jobs:
        queue.push(job)
    served = []
    while (job := queue.first()) is not None:
        queue.take(job)
        served.append(jobs.index(job))
    assert served == [4, 0, 3, 1, 5, 2]


def test_a_full_queue_refuses_and_a_request_that_can_never_fit_is_refused_at_once(windowed):
    engine = _engine(windowed, max_queue=2, cache_tokens=256)
    request = Request(windowed.prompt("a"), Sampling(max_output_tokens=5))
    for _ in range(2):
        engine.submit(request)
    with pytest.raises(Overloaded, match="2 requests are waiting already"):
        engine.submit(request)
    with pytest.raises(ValueError, match="tokens and an answer of up to 1000 are more than the"):
        engine.submit(Request(windowed.prompt("a"), Sampling(max_output_tokens=1000)))


class _OnlyLetters:
    """The ids of two letters in turn, then the end."""

    def __init__(self, ids, stop, size):
        self._ids, self._stop, self._size, self.seen = ids, stop, size, []

    def fresh(self):
        return _OnlyLetters(self._ids, self._stop, self._size)

    def allowed(self):
        mask = np.zeros(self._size, bool)
        mask[self._ids[len(self.seen) % 2] if len(self.seen) < 6 else self._stop] = True
        return mask

    def accept(self, token):
        self.seen.append(token)


def test_a_constraint_decides_every_token_while_others_write_freely(windowed):
    vocabulary = windowed.vocabulary
    a, b = (vocabulary.encode_text(letter)[0] for letter in "ab")
    constraint = _OnlyLetters([a, b], vocabulary.stops[0], windowed.config.vocab_size)
    engine = _engine(windowed)
    free = _requests(windowed, 3)
    expected = [_alone(engine, request) for request in free]
    jobs = [engine.submit(request) for request in free]
    bound = engine.submit(Request(windowed.prompt("the star"), Sampling(seed=1), constraint=constraint, candidates=2))
    assert _run(engine, [*jobs, bound])[:3] == expected
    assert [result.text for result in bound.results()] == ["ababab", "ababab"]
    assert all(result.finish_reason == "stop" for result in bound.results())


def test_excluded_ids_are_not_written_and_alternatives_are_those_of_the_model(biased_to):
    artist = biased_to("<draw>")
    draw = artist.vocabulary.specials["<draw>"]
    engine, prompt = _engine(artist), artist.prompt("the star")
    free, bound = (
        engine.submit(Request(prompt, Sampling(temperature=0, max_output_tokens=8), excluded=excluded, top_logprobs=3))
        for excluded in ((), (draw,))
    )
    _run(engine, [free, bound])
    assert draw in free.results()[0].ids and draw not in bound.results()[0].ids
    (first, *_) = [top for piece in bound.take() for top in piece.top]
    scores = artist.logits(list(prompt.ids))[-1].astype(np.float64)
    grammar = np.asarray(engine._batch.dispatcher._grammar.outside).copy()
    grammar[draw] = False
    scores = np.where(grammar, scores, -np.inf)
    logprobs = scores - np.log(np.exp(scores).sum())
    best = np.argsort(-logprobs)[:3]
    assert [i for i, _ in first] == best.tolist()
    np.testing.assert_allclose([p for _, p in first], logprobs[best], atol=1e-4)


def test_a_medium_longer_than_a_chunk_is_read_at_once(make_model):
    model = make_model()
    pictures = [Image(np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)) for i in range(5)]
    prompt = model.prompt([*pictures, "what colour"])
    small, large = (_engine(model, chunk=chunk) for chunk in (64, 1024))
    sampling = Sampling(temperature=0, max_output_tokens=8)
    assert small.generate([prompt], [sampling])[0].ids.tolist() == large.generate([prompt], [sampling])[0].ids.tolist()
    object.__setattr__(
        prompt, "group", np.where((np.arange(len(prompt)) > 2) & (np.arange(len(prompt)) < len(prompt) - 4), 1, 0).astype(np.int32)
    )
    assert small.generate([prompt], [sampling])[0].ids.tolist() == large.generate([prompt], [sampling])[0].ids.tolist()


def test_many_threads_are_served_by_one_engine_thread_that_drains_when_closed(windowed):
    engine = _engine(windowed)
    requests = _requests(windowed, 12)
    expected = [_alone(engine, request) for request in requests]
    engine.start()
    told, results = threading.Event(), {}

    def ask(number):
        job = engine.submit(requests[number], lambda job: told.set())
        results[number] = job.results(60)[0].ids.tolist()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = engine.submit(requests[0])
    engine.close()
    assert [results[i] for i in range(12)] == expected and told.is_set()
    assert last.results(0)[0].ids.tolist() == expected[0]
    with pytest.raises(Cancelled, match="closing"):
        engine.submit(requests[0])


def test_a_step_that_fails_ends_what_was_under_way_and_the_engine_goes_on(windowed, monkeypatch):
    engine = _engine(windowed)
    engine.start()
    (request,) = _requests(windowed, 1)
    monkeypatch.setattr(engine._batch, "_decode", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.submit(request).results(60)
    monkeypatch.undo()
    assert engine.submit(request).results(60)[0].ids.size
    engine.close()


def test_warming_compiles_what_requests_need(windowed, monkeypatch):
    from pollux.generate import decode

    engine = _engine(windowed, cache_tokens=512, max_rows=4)
    done = []
    engine.warm(lambda number, of: done.append((number, of)))
    assert done[-1][0] == done[-1][1] > 4
    compiled = decode.decode._cache_size(), decode.prefill._cache_size()
    _run(engine, [engine.submit(request) for request in _requests(windowed, 9)])
    assert (decode.decode._cache_size(), decode.prefill._cache_size()) == compiled


def test_a_row_among_31_others_writes_what_it_writes_alone_while_others_come_and_end(windowed):
    (request, *others) = _requests(windowed, 60)
    request = Request(request.prompt, Sampling(temperature=1.2, seed=77, max_output_tokens=90))
    expected = _alone(_engine(windowed), request)
    engine = _engine(windowed, max_rows=32)
    joined = 0
    launch = engine._batch.dispatcher.launch

    def watched(kind, rows, before, steps, read):
        nonlocal joined
        joined += before is not None and not set(rows) <= set(before.rows)
        return launch(kind, rows, before, steps, read)

    engine._batch.dispatcher.launch = watched
    jobs, most = [engine.submit(each) for each in (*others[:20], request, *others[20:40])], 0
    for other in others[40:]:
        jobs.append(engine.submit(other))
        engine._batch.step()
        most = max(most, len(engine._batch.rows))
    _run(engine, jobs)
    assert jobs[20].results()[0].ids.tolist() == expected
    assert most == 32 and joined > 2, "rows were meant to join a dispatch that was under way"


def test_a_prompt_whose_medium_is_longer_than_a_short_read_waits_for_a_longer_one(make_model):
    model = make_model()
    short, long = model.prompt("the star " * 10), model.prompt("the star " * 60)
    inside = np.arange(len(long)) < 90
    object.__setattr__(long, "group", np.where(inside, 1, 0).astype(np.int32))
    assert len(short) <= 64 and len(long) > 100
    requests = [Request(prompt, Sampling(temperature=0, max_output_tokens=4)) for prompt in (short, long, long, short)]
    engine = _engine(model, chunk=128)
    expected = [_alone(_engine(model, chunk=128), request) for request in requests]
    assert _run(engine, [engine.submit(request) for request in requests]) == expected
