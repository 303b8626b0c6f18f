"""Media in an object store that fsspec reaches by a URL: here one in memory, and one that fails."""

import contextlib
import io
import os
import time
import uuid

import fsspec
import httpx
import pytest
from google import genai
from stored_server import serving

from pollux.serve.errors import ApiError
from pollux.serve.files import open_media
from pollux.serve.media_store import COPY_SECONDS, ObjectStore
from pollux.serve.store import Store


@pytest.fixture
def place():
    """A URL in memory and the names of the objects there."""
    url = f"memory://{uuid.uuid4().hex}/media"
    remote, root = fsspec.url_to_fs(url)
    return url, lambda: [entry.rpartition("/")[2] for entry in remote.ls(root, detail=False)] if remote.exists(root) else []


def test_files_lie_in_the_object_store_and_are_fetched_when_they_are_used(tmp_path, place):
    url, objects = place
    with serving(tmp_path, objects=url) as running:
        client = genai.Client(api_key="any", http_options={"base_url": running.url})
        file = client.files.upload(file=io.BytesIO(b"a text"), config={"mime_type": "text/plain"})
        assert len(objects()) == 1 and not list((tmp_path / "copies").iterdir())
        assert httpx.get(f"{running.url}/v1beta/{file.name}:download", timeout=60).content == b"a text"
    with serving(tmp_path, objects=url) as running:
        assert open_media(running.server, file.uri)[0].read_text() == "a text"
        httpx.delete(f"{running.url}/v1beta/{file.name}", timeout=60).raise_for_status()
        assert not objects() and not list((tmp_path / "copies").iterdir())


def test_a_store_that_does_not_answer_makes_no_file_and_the_upload_goes_on_later(tmp_path, place, monkeypatch):
    url, objects = place
    with serving(tmp_path, objects=url) as running:
        headers = {
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Type": "text/plain",
        }
        upload = httpx.post(f"{running.url}/upload/v1beta/files", headers=headers, json={}, timeout=60).headers["x-goog-upload-url"]
        finalize = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0"}

        def refuse(*_):
            raise PermissionError("no such credentials")

        monkeypatch.setattr(running.store._media._remote, "put_file", refuse, raising=False)
        answer = httpx.post(upload, headers=finalize, content=b"a text", timeout=60)
        assert (answer.status_code, answer.json()["error"]["status"]) == (503, "UNAVAILABLE")
        assert httpx.get(f"{running.url}/v1beta/files", timeout=60).json() == {} and not objects()
        monkeypatch.undo()
        file = httpx.post(upload, headers=finalize, content=b"a text", timeout=60).json()["file"]
        assert open_media(running.server, file["uri"])[0].read_text() == "a text"


def test_what_could_not_be_taken_away_is_taken_away_later(tmp_path, place, monkeypatch):
    url, objects = place
    store = Store(tmp_path, objects=url)
    store.write("upload", 0, b"bytes")
    store.sync("upload")
    store.keep("upload")
    record = store.records.add("file", "a", {}, media="upload")

    def refuse(*_):
        raise ConnectionError

    monkeypatch.setattr(store._media._remote, "rm_file", refuse, raising=False)
    store.delete(record)
    assert store.records.get("file", "a") is None and objects() == ["upload"]
    monkeypatch.undo()
    store.close()
    Store(tmp_path, objects=url).close()
    assert not objects()


def test_files_that_were_kept_before_there_was_an_object_store_move_there(tmp_path, place):
    url, objects = place
    with contextlib.closing(Store(tmp_path)) as store:
        for name in ("file", "of other records"):
            keep(store, name)
        record = store.records.add("file", "a", {}, media="file")
    for file in (tmp_path / "media").iterdir():
        os.utime(file, (0, 0))
    with contextlib.closing(Store(tmp_path, objects=url)) as store:
        assert objects() == ["file"] and [file.name for file in (tmp_path / "media").iterdir()] == ["of other records"]
        assert store.path(record).read_bytes() == b"bytes"


def test_an_object_in_a_folder_is_on_disk_before_its_record_is_made(tmp_path, monkeypatch):
    synced, real = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.add(os.fstat(descriptor).st_ino), real(descriptor)))
    with contextlib.closing(Store(tmp_path / "data", objects=f"file://{tmp_path}/objects")) as store:
        keep(store, "file")
    assert {(tmp_path / "objects").stat().st_ino, (tmp_path / "objects" / "file").stat().st_ino} <= synced


def test_a_full_disk_is_no_silence_of_the_object_store(tmp_path, place, monkeypatch):
    with contextlib.closing(Store(tmp_path, objects=place[0])) as store:
        keep(store, "file")
        record = store.records.add("file", "a", {}, media="file")

        def full(*_):
            raise OSError(28, "No space left on device")

        for call in ("put_file", "get_file"):
            monkeypatch.setattr(store._media._remote, call, full, raising=False)
        for call in (lambda: keep(store, "other"), lambda: store.path(record)):
            with pytest.raises(ApiError, match="disk of the server is full"):
                call()


def keep(store, name):
    store.write(name, 0, b"bytes")
    store.sync(name)
    store.keep(name)
    store.discard(name)


def test_copies_go_an_hour_after_their_last_use(tmp_path, place):
    media = ObjectStore(place[0], tmp_path)
    for name in ("old", "new"):
        (tmp_path / "part").write_bytes(b"bytes")
        media.keep(tmp_path / "part", name)
        media.path(name)
    long_ago = time.time() - COPY_SECONDS - 1
    for name in ("old", "new"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    assert media.path("new").read_bytes() == b"bytes"
    media.tidy()
    assert not (tmp_path / "old").exists() and (tmp_path / "new").exists()
    assert media.path("old").read_bytes() == b"bytes"
    with pytest.raises(FileNotFoundError):
        media.path("never")


def test_a_url_that_is_no_place_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be opened as an object store"):
        Store(tmp_path, objects="nosuch://bucket")
