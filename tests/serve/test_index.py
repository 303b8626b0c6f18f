"""The index against the formulas: BM25 in numpy, cosines by brute force, reciprocal rank fusion; and what it survives."""

import multiprocessing
import os
import re
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.serve.retrieval.chunks import Chunk, cut
from pollux.serve.retrieval.index import VECTOR_WEIGHT, Index, fuse
from pollux.serve.retrieval.reading import Reading

WORDS = "zorba kimto balu hendri quax mimpo tarvu".split()  # which have no other stem
PROBE = np.eye(8, dtype=np.float32)[0]


def chunk(text: str) -> Chunk:
    return Chunk(text, 0, len(text), 0, len(text.encode()))


def filled(path, texts, vectors=None, names=None):
    index = Index(path, PROBE)
    for i, text in enumerate(texts):
        index.put((names or {}).get(i, f"d{i}"), [chunk(text)], [None if vectors is None else vectors[i]], "", f"uri:{i}")
    return index


def bm25(texts: list[str], query: list[str]) -> np.ndarray:
    """Robertson and Zaragoza 2009 with the k1, b and least weight of SQLite's documentation."""
    counts = np.array([[text.split().count(word) for word in query] for text in texts], float)
    lengths = np.array([len(text.split()) for text in texts], float)
    have = (counts > 0).sum(0)
    weight = np.maximum(np.log((len(texts) - have + 0.5) / (have + 0.5)), 1e-6)
    return (weight * counts * 2.2 / (counts + 1.2 * (1 - 0.75 + 0.75 * lengths / lengths.mean())[:, None])).sum(1)


def test_words_are_ranked_by_bm25(tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(3, 30), p=[0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.02])) for _ in range(60)]
    index = filled(tmp_path / "a.sqlite", texts)
    for query in (["quax"], ["mimpo", "tarvu"], ["hendri", "quax", "absent"]):
        expected = bm25(texts, query)
        found = index.search(" ".join(query), None, 60)
        assert {one.uri for one in found} == {f"uri:{i}" for i, text in enumerate(texts) if set(query) & set(text.split())}
        for one in found:
            assert one.bm25 == pytest.approx(expected[int(one.uri[4:])], rel=1e-5)
        assert [one.bm25 for one in found] == sorted((one.bm25 for one in found), reverse=True)


def test_vectors_are_ranked_by_their_cosines(tmp_path):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(300, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = filled(tmp_path / "a.sqlite", ["text"] * 300, vectors)
    query = vectors[17]
    best = np.argsort(-(vectors @ query))[:20]
    found = index.search("", query, 20)
    assert [one.uri for one in found] == [f"uri:{i}" for i in best]
    np.testing.assert_allclose([one.cosine for one in found], (vectors @ query)[best], atol=1e-6)


def test_both_rankings_are_fused_by_reciprocal_rank(tmp_path):
    halved = fuse(([1, 2], 1.0), ([2, 3], 0.5))
    assert halved == [(2, pytest.approx(1 / 62 + 0.5 / 61)), (1, pytest.approx(1 / 61)), (3, pytest.approx(0.5 / 62))]
    index = filled(tmp_path / "a.sqlite", ["zorba", "balu", "kimto"], np.eye(8, dtype=np.float32))
    [first, second, *_] = index.search("balu", np.eye(8, dtype=np.float32)[0] * 0.8 + np.eye(8, dtype=np.float32)[1] * 0.6, 3)
    assert (first.uri, second.uri) == ("uri:1", "uri:0")
    assert first.score == pytest.approx(1 / 61 + VECTOR_WEIGHT / 62) and first.bm25 is not None and second.bm25 is None


def test_only_the_named_documents_are_searched(tmp_path):
    rng = np.random.default_rng(2)
    index = filled(tmp_path / "a.sqlite", ["zorba"] * 100, rng.normal(size=(100, 8)))
    found = index.search("zorba", PROBE, 10, {"d5", "d99", "absent"})
    assert {one.document for one in found} == {"d5", "d99"}
    assert index.search("zorba", PROBE, 10, set()) == []


def test_a_document_that_is_put_again_or_removed_leaves_nothing_behind(tmp_path):
    index = filled(tmp_path / "a.sqlite", ["zorba", "balu"], np.eye(8, dtype=np.float32))
    index.put("d0", [chunk("kimto"), chunk("quax")], [PROBE, None], "", "new")
    assert index.search("zorba", None, 5) == [] and index.count() == 3
    assert [one.uri for one in index.search("quax", None, 5)] == ["new"]
    index.remove("d0")
    assert index.documents() == {"d1": ""} and index.search("kimto quax", None, 5) == []
    assert [one.uri for one in index.search("", PROBE, 5)] == ["uri:1"]


def test_all_is_there_after_opening_again_and_gone_for_another_model(tmp_path):
    filled(tmp_path / "a.sqlite", ["zorba"], np.eye(8, dtype=np.float32)).close()
    again = Index(tmp_path / "a.sqlite", PROBE)
    assert again.documents() == {"d0": ""} and again.search("zorba", PROBE, 1)[0].chunk.text == "zorba"
    again.close()
    assert Index(tmp_path / "a.sqlite", np.eye(8, dtype=np.float32)[1]).documents() == {}


@pytest.mark.parametrize("broken", ["header", "middle", "empty"])
def test_a_broken_index_is_made_anew(tmp_path, broken):
    path = tmp_path / "a.sqlite"
    filled(path, ["zorba " * 5000] * 20, np.eye(20, 8, dtype=np.float32)).close()
    data = bytearray(path.read_bytes())
    if broken == "header":
        data[:16] = b"no database here"
    elif broken == "middle":
        data[4096 : len(data) // 2] = os.urandom(len(data) // 2 - 4096)
    path.write_bytes(b"" if broken == "empty" else bytes(data))
    index = Index(path, PROBE)
    assert index.documents() == {}
    index.put("d", [chunk("balu")], [PROBE], "", "")
    assert index.search("balu", PROBE, 1)[0].document == "d"


def _put_for_ever(path, ready):
    index = Index(path, PROBE)
    index.put("kept", [chunk("kimto")], [PROBE], "", "")
    for i in range(1_000_000):
        index.put(f"d{i % 3}", [chunk(f"zorba {i} {k}") for k in range(200)], [PROBE] * 200, "", str(i))
        if i == 2:
            ready.set()


def test_a_killed_writer_leaves_whole_documents(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_put_for_ever, args=(tmp_path / "a.sqlite", ready))
    process.start()
    assert ready.wait(60)
    process.join(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    index = Index(tmp_path / "a.sqlite", PROBE)
    names = index.documents()
    assert set(names) == {"kept", "d0", "d1", "d2"} and index.count() == 1 + 3 * 200
    for name in ("d0", "d1", "d2"):
        found = index.search("zorba", None, 1000, {name})
        assert len(found) == 200 and len({one.uri for one in found}) == 1


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("index") / "a.sqlite", ['a "quoted" AND zorba', "x' OR 1=1; DROP TABLE chunks --", "日本語の本"])


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text("\"'*()^:-+{}[]NEAR AND OR NOT text zorba%_;\\\0", max_size=40)))
def test_no_query_has_a_special_meaning(index, query):
    found = index.search(query, None, 10)
    words = {word.lower() for word in re.findall(r"\w+", query)}
    assert all(one.bm25 is not None for one in found)
    assert ("zorba" in words) <= any("zorba" in one.chunk.text for one in found)
    assert index.count() == 3


def test_words_of_scripts_without_spaces_are_found(index):
    assert [one.chunk.text for one in index.search("日本語", None, 5)] == ["日本語の本"]
    assert [one.chunk.text for one in index.search("あの日本語はどう。", None, 5)] == ["日本語の本"]  # a question has other words too
    assert index.search("本日", None, 5) == []


def test_inflected_words_and_accents_are_found(tmp_path):
    index = filled(tmp_path / "a.sqlite", ["the astronauts landed in a café", "nothing"])
    assert [one.uri for one in index.search("astronaut landing", None, 5)] == ["uri:0"]
    assert [one.uri for one in index.search("CAFE", None, 5)] == ["uri:0"]


def test_a_passage_is_found_by_its_title_and_heading(tmp_path):
    index = Index(tmp_path / "a.sqlite", None)
    chunks = cut(Reading("# Owls\n\nThey hunt at night.\n\n# Bees\n\nThey dance.", "markdown"), 5, 0)
    index.put("d", chunks, [None] * len(chunks), "Animals", "")
    assert index.search("owls", None, 1)[0].chunk.heading == "Owls"
    assert len(index.search("animals", None, 10)) == len(chunks)
