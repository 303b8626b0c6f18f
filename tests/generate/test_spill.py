"""The prefix cache beyond its room and beyond its program: pages come back from memory or disk, and never change an answer."""

import dataclasses
import os
import threading

import jax
import numpy as np
import pytest

from pollux.content import Image
from pollux.generate.engine import Engine
from pollux.generate.model import Model
from pollux.generate.sampler import Sampling
from pollux.generate.settings import EngineSettings
from pollux.generate.spill import Spill
from pollux.model.low_rank import attach

PICTURE = Image(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8))
LONG = "the big red circle is left of the small blue star " * 26
OTHERS = [f"{i} is " + "what colour is the circle? " * 40 for i in range(4)]
SAMPLING = Sampling(temperature=1.0, seed=3, max_output_tokens=12)
WINDOWED = ([dict(num_kv_heads=1, window=40), dict(position="none", log_n_native=4)], [{}, {}])


@pytest.fixture(scope="module", params=["global", "windowed", "int8", "float8", "bfloat16"])
def model(request, make_model):
    made = make_model(*WINDOWED) if request.param == "windowed" else make_model()
    if request.param == "bfloat16":
        made.params = jax.tree.map(lambda x: np.asarray(x, jax.numpy.bfloat16), made.params)
    made.kv_cache_dtype = request.param if request.param in ("int8", "float8") else None
    return made


@pytest.fixture(scope="module")
def plain_model(make_model):
    return make_model()


def engine_of(model, **settings):
    settings = EngineSettings(**{"chunk": 64, "cache_tokens": 512, "max_rows": 2, "kv_cache_dtype": model.kv_cache_dtype} | settings)
    return Engine(model.params, model.config, model.vocabulary, model.codec, None, settings)


def answer(engine, model, prompt):
    """Ids and how many tokens of the prompt were in the cache."""
    result = engine.generate([model.prompt(prompt)], [SAMPLING])[0]
    return result.ids.tolist(), result.usage.cached


def crowd_out(engine, model):
    for text in OTHERS:
        engine.generate([model.prompt(text)], [SAMPLING])


def files(folder):
    return sorted(folder.glob("*.page"))


@pytest.mark.parametrize("where", ["disk", "memory"])
@pytest.mark.parametrize("media", [False, True])
def test_a_prefix_that_was_crowded_out_comes_back_and_the_answer_is_the_same(model, tmp_path, where, media):
    prompt = [PICTURE, LONG] if media else LONG
    plain = engine_of(model)
    expected, _ = answer(plain, model, prompt)
    crowd_out(plain, model)
    assert answer(plain, model, prompt) == (expected, 0)
    engine = engine_of(model, **({"spill": tmp_path} if where == "disk" else {"spill_memory": 1 << 24}))
    assert answer(engine, model, prompt) == (expected, 0)
    crowd_out(engine, model)
    size = len(model.prompt(prompt))
    for _ in range(2):
        ids, cached = answer(engine, model, prompt)
        assert ids == expected and size - 64 < cached < size
    assert bool(files(tmp_path)) == (where == "disk")
    engine.close()


def test_a_held_context_is_found_by_the_next_program_and_its_pages_are_not_read_again(model, tmp_path, monkeypatch):
    prompt = model.prompt([LONG, PICTURE])
    expected = engine_of(model).generate([prompt], [SAMPLING])[0].ids.tolist()
    engine = engine_of(model, spill=tmp_path)
    context = engine.hold(prompt)
    engine._spill.flush()  # and then the end, without a close
    engine = engine_of(model, spill=tmp_path)
    memory, read = engine._batch.dispatcher.memory, []
    real = memory.read
    monkeypatch.setattr(memory, "read", lambda *arguments: read.append(arguments) or real(*arguments))
    again = engine.hold(prompt)
    assert again.tokens == context.tokens > 200 and not read
    result = engine.generate([prompt], [SAMPLING])[0]
    assert result.ids.tolist() == expected and result.usage.cached == context.tokens
    again.release()
    engine.close()


def test_pages_of_another_model_are_not_taken_for_this_ones(plain_model, tmp_path):
    engine = engine_of(plain_model, spill=tmp_path)
    engine.hold(plain_model.prompt(LONG))
    engine.close()
    params = jax.tree.map(np.array, plain_model.params)
    params["groups"][0]["attention"]["k"].flat[0] += 1e-3
    base = plain_model.config
    wider = dataclasses.replace(base, pattern=(dataclasses.replace(base.pattern[0], parallel=True),))
    for changed, config in ((params, base), (plain_model.params, wider)):
        other = Model(changed, config, plain_model.tokens_config, plain_model.vocabulary, plain_model.codec)
        assert answer(engine_of(other, spill=tmp_path), other, LONG)[1] == 0
    assert answer(engine_of(plain_model, spill=tmp_path), plain_model, LONG)[1] > 200
    assert answer(engine_of(plain_model, spill=tmp_path, kv_cache_dtype="int8"), plain_model, LONG)[1] == 0


def test_pages_of_an_adapter_are_not_taken_for_those_of_the_same_one_with_another_weight(plain_model, tmp_path):
    q = plain_model.params["groups"][0]["attention"]["q"]
    adapter = {"groups.0.attention.q": {"a": q[..., :2], "b": q[:, :2]}}
    made = []
    for scale in (0.1, 0.2):
        params = attach(plain_model.params, adapter, scale)
        made.append(Model(params, plain_model.config, plain_model.tokens_config, plain_model.vocabulary, plain_model.codec))
    for model, cached in ((made[0], False), (made[1], False), (made[0], True)):
        engine = engine_of(model, spill=tmp_path)
        assert bool(answer(engine, model, LONG)[1]) == cached
        engine.hold(model.prompt(LONG))
        engine.close()


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: flipped(data, -1 % len(data)), id="last bit"),
        pytest.param(lambda data: flipped(data, 0), id="first bit"),
        pytest.param(lambda data: flipped(data, len(data) // 2), id="a bit within"),
        pytest.param(lambda data: data[:-1], id="cut"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data + b"\0", id="longer"),
    ],
)
def test_damaged_files_are_noticed_read_anew_and_replaced(plain_model, tmp_path, damage, caplog):
    engine = engine_of(plain_model, spill=tmp_path)
    expected = answer(engine, plain_model, LONG)[0]
    engine.hold(plain_model.prompt(LONG))
    engine.close()
    whole = {file: file.read_bytes() for file in files(tmp_path)}
    for file, data in whole.items():
        file.write_bytes(damage(data))
    engine = engine_of(plain_model, spill=tmp_path)
    assert answer(engine, plain_model, LONG) == (expected, 0)
    assert "is damaged" in caplog.text
    engine.hold(plain_model.prompt(LONG))
    engine.close()
    assert set(files(tmp_path)) == set(whole)
    assert answer(engine_of(plain_model, spill=tmp_path), plain_model, LONG)[1] > 200


def test_a_file_in_the_place_of_another_is_noticed(plain_model, tmp_path):
    engine = engine_of(plain_model, spill=tmp_path)
    expected = answer(engine, plain_model, LONG)[0]
    engine.hold(plain_model.prompt(LONG))
    engine.close()
    first, *others = files(tmp_path)
    for other in others:  # not only exchanged: attention does not mind in which order it finds the pages that it sees
        other.write_bytes(first.read_bytes())
    assert answer(engine_of(plain_model, spill=tmp_path), plain_model, LONG)[0] == expected


def put(spill, **data):
    spill.put(list(data), [lambda one=one: one for one in data.values()], sum(map(len, data.values())))
    spill.flush()


def test_the_folder_keeps_to_its_bytes_and_what_was_used_last_also_after_a_restart(tmp_path):
    spill = Spill(tmp_path, 5 * 132, 0)
    for i in range(4):
        put(spill, **{f"n{i}": bytes([i]) * 100})
        os.utime(tmp_path / f"n{i}.page", (i, i))
    assert spill.get("n0") == bytes(100)
    put(spill, n4=b"4" * 100)
    put(spill, n5=b"5" * 100)
    assert [name in spill for name in ("n0", "n1", "n2", "n3", "n4", "n5")] == [True, False, True, True, True, True]
    assert sum(file.stat().st_size for file in files(tmp_path)) == 5 * 132
    spill.close()
    (tmp_path / "half.page.part").write_bytes(b"x")
    spill = Spill(tmp_path, 4 * 132, 0)
    assert not (tmp_path / "half.page.part").exists()
    put(spill, n6=b"6" * 100)
    assert [file.stem for file in files(tmp_path)] == ["n0", "n4", "n5", "n6"]
    assert spill.get("n6") == b"6" * 100 and spill.get("n1") is None
    put(spill, large=b"x" * 1000)
    assert "large" not in spill
    spill.close()


def test_memory_keeps_to_its_bytes_and_serves_what_the_folder_lost(tmp_path):
    spill = Spill(None, 1, 250)
    put(spill, a=b"a" * 100)
    put(spill, b=b"b" * 100)
    assert spill.get("a") == b"a" * 100
    put(spill, c=b"c" * 100)
    assert [name in spill for name in "abc"] == [True, False, True]
    spill.close()
    spill = Spill(tmp_path, 10_000, 250)
    put(spill, a=b"a" * 100)
    (tmp_path / "a.page").unlink()
    assert spill.get("a") == b"a" * 100
    spill.close()


def test_what_comes_faster_than_it_is_written_is_left_out_or_waits(tmp_path, monkeypatch):
    monkeypatch.setattr("pollux.generate.spill._MOST_PENDING", 150)
    spill, written = Spill(tmp_path, 10_000, 0), threading.Event()

    def late():
        written.wait()
        return b"a" * 100

    spill.put(["a"], [late], 100)
    spill.put(["b"], [late], 100)
    assert spill.is_full
    spill.put(["c"], [late], 100)
    assert [name in spill for name in "abc"] == [True, True, False]
    threading.Timer(0.1, written.set).start()
    spill.put(["d"], [late], 100, wait=True)
    spill.flush()
    assert [spill.get(name) for name in "abcd"] == [b"a" * 100, b"a" * 100, None, b"a" * 100] and not spill.is_full
    spill.close()


def test_a_full_disk_costs_pages_and_nothing_else(tmp_path, monkeypatch, caplog):
    spill = Spill(tmp_path, 10_000, 0)
    put(spill, a=b"a" * 100)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pollux.generate.spill.os.replace", full)
        put(spill, b=b"b" * 100)
    assert "b" not in spill and "is full" in caplog.text
    put(spill, c=b"c" * 100)  # in the place of the first
    assert [name in spill for name in "abc"] == [False, False, True]
    assert len(list(tmp_path.iterdir())) == 1
    spill.close()
