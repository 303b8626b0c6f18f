"""The search over a folder: what it does with files that are changed under it or cannot be read, and the addresses of passages."""

import contextlib
import os
import threading

import pytest
from stored_server import until

from pollux.serve.retrieval import folder as folder_module
from pollux.serve.retrieval.chunks import cut
from pollux.serve.retrieval.folder import FolderSearch
from pollux.serve.retrieval.index import Found
from pollux.serve.retrieval.reading import Reading


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs"


@contextlib.contextmanager
def searching(docs):
    search = FolderSearch(docs, docs.parent / "index.sqlite", None)
    search.start()
    try:
        yield search
    finally:
        search.close()


def found(search, query):
    return {one.uri.partition("#")[0].removeprefix("docs/") for one in search.search(query, 10)}


def test_the_folder_is_read_before_anybody_searches(docs, monkeypatch):
    monkeypatch.setattr(folder_module, "LOOK_SECONDS", None)
    (docs / "a.txt").write_text("zorba")
    with searching(docs) as search:
        until(lambda: search._index.documents())


def test_a_search_during_a_look_at_the_folder_waits_for_the_next(docs, monkeypatch):
    """The look that is under way may have passed by what has changed since it began."""
    under_way, go_on, seconds = threading.Event(), threading.Event(), []
    refresh = FolderSearch._refresh

    def slow(self):
        refresh(self)
        under_way.set()
        assert go_on.wait(60)

    monkeypatch.setattr(FolderSearch, "_refresh", slow)
    monkeypatch.setattr(folder_module, "FRESH_SECONDS", 60.0)
    wait_for = threading.Condition.wait_for

    def noted(self, predicate, timeout=None):
        happened = wait_for(self, predicate, timeout)
        seconds.append((timeout, happened))
        return happened

    monkeypatch.setattr(threading.Condition, "wait_for", noted)
    with searching(docs) as search:
        assert under_way.wait(60)
        (docs / "new.txt").write_text("zorba")
        names = []
        thread = threading.Thread(target=lambda: names.append(found(search, "zorba")))
        thread.start()
        until(lambda: search._asked)
        go_on.set()
        thread.join()
        assert names == [{"new.txt"}] and (60.0, True) in seconds


def test_a_file_that_cannot_be_read_does_not_keep_the_next_from_being_found(docs, caplog, monkeypatch):
    (docs / "a.json").write_text("{")
    (docs / "b.txt").write_text("a mistake of ours")
    (docs / "c.txt").write_text("zorba")
    read = folder_module.read

    def failing(path, mime_type):
        if path.name == "b.txt":
            raise AssertionError("ours")
        return read(path, mime_type)

    monkeypatch.setattr(folder_module, "read", failing)
    with searching(docs) as search:
        assert found(search, "zorba") == found(search, "zorba") == {"c.txt"}
        [said] = [record.message for record in caplog.records if "a.json" in record.message]
        assert said.startswith(f"{docs}/a.json is not searched: the document is not JSON")
        monkeypatch.setattr(folder_module, "read", read)
        assert found(search, "mistake") == {"b.txt"}


def test_what_is_not_in_the_folder_is_not_found_while_the_rest_is_read(docs, monkeypatch):
    """Such as all of the folder that was searched before the server was started with another."""
    (docs / "a.txt").write_text("zorba")
    with searching(docs) as search:
        assert found(search, "zorba") == {"a.txt"}
    docs.rename(docs.parent / "before")
    docs.mkdir()
    (docs / "b.txt").write_text("balu")
    begun, go_on = threading.Event(), threading.Event()
    read = folder_module.read

    def slow(path, mime_type):
        begun.set()
        assert go_on.wait(60)
        return read(path, mime_type)

    monkeypatch.setattr(folder_module, "read", slow)
    monkeypatch.setattr(folder_module, "FRESH_SECONDS", 0.0)
    with searching(docs) as search:
        assert begun.wait(60)
        assert found(search, "zorba") == set()
        go_on.set()


def test_names_that_are_no_text_are_searched_too(docs):
    for i in range(2):
        with open(os.path.join(os.fsencode(docs), b"caf\xe9 %d\xff.txt" % i), "w") as file:
            file.write(f"zorba {i}")
    (docs / "z.txt").write_text("zorba")
    with searching(docs) as search:
        assert {one.uri for one in search.search("zorba", 10)} == {"docs/caf%E9%200%FF.txt", "docs/caf%E9%201%FF.txt", "docs/z.txt"}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("one two-three, four", "#:~:text=one%20two%2Dthree%2C%20four"),
        ("# One\n\na b c d e f g", "#:~:text=One,d%20e%20f%20g"),
        ("*** | ###", ""),
    ],
)
def test_the_address_of_a_passage_names_its_words_if_it_has_any(docs, text, fragment):
    [chunk] = cut(Reading(text, "markdown"))
    search = FolderSearch(docs, docs.parent / "index.sqlite", None)
    assert search.address(Found("a.md", "", "docs/a.md", chunk, 0.0, None, None)) == f"docs/a.md{fragment}"
    search.close()
