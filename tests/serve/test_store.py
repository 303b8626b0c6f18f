"""The folder of the server under what happens to servers: killed in the middle, started twice, a full disk, an older or newer pollux."""

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import threading

import httpx
import numpy as np
import pytest
from stored_server import Clock, program, serving, until

from pollux.serve.databases import Database
from pollux.serve.errors import ApiError, disk_full
from pollux.serve.records import Records, Taken, space
from pollux.serve.store import Store, new_id

MEGABYTE = 1 << 20


def begin(url, size):
    headers = {
        "X-Goog-Upload-Protocol": "resumable",
        "X-Goog-Upload-Command": "start",
        "X-Goog-Upload-Header-Content-Length": str(size),
        "X-Goog-Upload-Header-Content-Type": "application/octet-stream",
    }
    place = httpx.post(f"{url}/upload/v1beta/files", headers=headers, json={}, timeout=60).headers["x-goog-upload-url"]
    return place.removeprefix(url)


def send(url, data, offset, command="upload"):
    return httpx.post(url, headers={"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)}, content=data, timeout=60)


def received(url):
    return int(httpx.post(url, headers={"X-Goog-Upload-Command": "query"}, timeout=60).headers["x-goog-upload-size-received"])


def test_files_are_there_and_uploads_go_on_after_the_server_was_killed(tmp_path):
    data = np.random.default_rng(0).bytes(6 * MEGABYTE)
    cut = 4 * MEGABYTE
    with program(tmp_path) as (process, url):
        done = send(url + begin(url, 1000), data[:1000], 0, "upload, finalize").json()["file"]
        place = begin(url, len(data))
        assert send(url + place, data[:cut], 0).status_code == 200

        def endless():
            yield data[cut : cut + MEGABYTE]
            process.kill()
            process.wait()
            yield data[cut + MEGABYTE :]

        with pytest.raises(httpx.TransportError):
            send(url + place, endless(), cut, "upload, finalize")
    with serving(tmp_path) as running:
        assert httpx.get(f"{running.url}/v1beta/{done['name']}", timeout=60).json() | {"uri": ""} == done | {"uri": ""}
        assert httpx.get(f"{running.url}/v1beta/{done['name']}:download", timeout=60).content == data[:1000]
        assert received(running.url + place) == cut
        file = send(running.url + place, data[cut:], cut, "upload, finalize").json()["file"]
        record = running.store.records.get("file", file["name"].removeprefix("files/"))
        assert running.store.path(record).read_bytes() == data


def test_what_a_crash_left_half_done_is_swept_at_the_start(tmp_path):
    store = Store(tmp_path)
    for upload in ("unfinished", "kept", "recorded", "forgotten"):
        if upload != "forgotten":
            store.records.add("upload", upload, {})
        store.write(upload, 0, b"bytes")
        store.sync(upload)
    store.keep("kept")  # and then, before its record, the end
    store.keep("recorded")
    store.records.add("file", "a", {}, media="recorded")  # and then, before the upload was discarded, the end
    store.close()
    store = Store(tmp_path)
    assert sorted(file.name for file in (tmp_path / "uploads").iterdir()) == ["kept", "unfinished"]
    assert [file.name for file in (tmp_path / "media").iterdir()] == ["recorded"]
    store.close()


def test_an_upload_in_one_request_that_was_cut_off_by_the_end_leaves_nothing_and_others_go_on(tmp_path):
    store = Store(tmp_path)
    for upload, data in (("whole", {"atOnce": True}), ("chunks", {})):
        store.records.add("upload", upload, data | {"received": 5})
        store.write(upload, 0, b"bytes")
        store.sync(upload)
    store.close()
    with serving(tmp_path) as running:
        until(lambda: running.store.records.get("upload", "whole") is None)
        until(lambda: [file.name for file in (tmp_path / "uploads").iterdir()] == ["chunks"])
        assert running.store.records.get("upload", "chunks") is not None


@pytest.mark.parametrize("step", ["write", "sync", "keep"])
def test_nothing_is_acknowledged_on_a_full_disk_and_the_upload_goes_on_when_there_is_room(tmp_path, monkeypatch, step):
    """The disk is full in one step of the store: its call fails as the system would let it fail."""
    data = b"x" * (2 * MEGABYTE)
    with serving(tmp_path) as running:
        place = begin(running.url, len(data))
        send(running.url + place, data[:MEGABYTE], 0)
        call = {"write": "open", "sync": "fsync", "keep": "link"}[step]
        real = getattr(os, call)

        def full(*arguments, **keywords):
            if threading.current_thread().name.startswith("pollux-serve"):
                raise OSError(28, "No space left on device")
            return real(*arguments, **keywords)

        monkeypatch.setattr(os, call, full)
        answer = send(running.url + place, data[MEGABYTE:], MEGABYTE, "upload, finalize")
        assert (answer.status_code, answer.json()["error"]["status"]) == (507, "RESOURCE_EXHAUSTED")
        assert "x-goog-upload-status" not in answer.headers  # the client then tries again
        monkeypatch.setattr(os, call, real)
        done = received(running.url + place)
        file = send(running.url + place, data[done:], done, "upload, finalize").json()["file"]
        assert file["sizeBytes"] == str(len(data))


def test_the_last_of_the_disk_is_for_records_so_that_files_can_be_deleted(tmp_path, monkeypatch):
    with serving(tmp_path) as running:
        places = [begin(running.url, 2 * MEGABYTE) for _ in range(2)]
        file = send(running.url + places[0], b"x" * (2 * MEGABYTE), 0, "upload, finalize").json()["file"]
        assert send(running.url + places[1], b"x" * MEGABYTE, 0).status_code == 200
        disk = os.statvfs(tmp_path)
        monkeypatch.setattr("pollux.serve.store._RESERVE", disk.f_blocks * disk.f_frsize)
        headers = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Header-Content-Length": "100"}
        assert httpx.post(f"{running.url}/upload/v1beta/files", headers=headers, json={}, timeout=60).status_code == 507
        assert send(running.url + places[1], b"x" * MEGABYTE, MEGABYTE, "upload, finalize").status_code == 507
        assert httpx.delete(f"{running.url}/v1beta/{file['name']}", timeout=60).status_code == 200
        monkeypatch.undo()
        assert send(running.url + places[1], b"x" * MEGABYTE, MEGABYTE, "upload, finalize").status_code == 200


def test_a_server_starts_on_a_full_disk_and_makes_what_room_it_can(tmp_path, monkeypatch):
    """SQLite cannot move what is in its log into its file, and says so when it is asked to."""

    def full(self):
        raise disk_full()

    monkeypatch.setattr(Database, "compact", full)
    with contextlib.closing(Store(tmp_path)) as store:
        store.records.add("file", "a", {}, media="kept", expires=store.clock() - 1)
        (tmp_path / "uploads" / "forgotten").write_bytes(b"bytes")
        (tmp_path / "media" / "kept").write_bytes(b"bytes")
        store.sweep()
        assert not list((tmp_path / "uploads").iterdir()) and not list((tmp_path / "media").iterdir())


def test_what_was_not_acknowledged_makes_room_on_a_full_disk(tmp_path, monkeypatch):
    with serving(tmp_path) as running:
        place = begin(running.url, 5 * MEGABYTE)
        send(running.url + place, b"x" * MEGABYTE, 0)
        write = running.store.write

        def full(upload, offset, data):
            if offset >= 3 * MEGABYTE:
                raise disk_full()
            write(upload, offset, data)

        monkeypatch.setattr(running.store, "write", full)
        assert send(running.url + place, b"x" * (4 * MEGABYTE), MEGABYTE).status_code == 507
        [part] = (tmp_path / "uploads").iterdir()
        assert part.stat().st_size == MEGABYTE


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path):
    """A server whose files may not grow beyond 3 MiB, by the kernel."""
    with program(tmp_path, "bash", "-c", f'ulimit -f {3 * 1024}; exec "$0" "$@"') as (_, url):
        place = begin(url, 5 * MEGABYTE)
        assert send(url + place, b"x" * (2 * MEGABYTE), 0).status_code == 200
        assert send(url + place, b"x" * (3 * MEGABYTE), 2 * MEGABYTE).status_code == 507
        assert received(url + place) == 2 * MEGABYTE
        assert httpx.get(f"{url}/v1beta/files", timeout=60).status_code == 200


def test_a_database_that_cannot_grow_says_so_and_is_whole_afterwards(tmp_path):
    code = f"""
import resource, signal
from pollux.serve.records import Records
from pollux.serve.errors import ApiError, disk_full
records = Records({str(tmp_path / "a.sqlite")!r})
records.add("kind", "before", {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    with records.transaction():
        records.add("kind", "lost", {{}})
        records.add("kind", "large", {{"a": "x" * 1_000_000}})
except ApiError as error:
    print(error.code)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
records.add("kind", "after", {{}})
print(*sorted(record.name for record in records.all("kind")))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
Records({str(tmp_path / "b.sqlite")!r})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["507", "after", "before"], result.stderr
    assert "b.sqlite cannot be used: the disk of the server is full" in result.stderr


def test_a_folder_has_one_server(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="in use by another server"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_database_of_a_later_pollux_is_left_alone(tmp_path):
    Records(tmp_path / "a.sqlite").close()
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match=re.escape("made by a later version of pollux (schema 99")):
        Records(tmp_path / "a.sqlite")


def test_a_transaction_is_all_or_nothing(tmp_path):
    records = Records(tmp_path / "a.sqlite")
    with pytest.raises(RuntimeError), records.transaction():
        records.add("kind", "a", {})
        raise RuntimeError
    assert records.get("kind", "a") is None
    records.add("kind", "a", {})
    with pytest.raises(Taken):
        records.add("kind", "a", {})
    assert records.add("other", "a", {})


def test_what_belongs_to_a_record_goes_with_it_and_shared_media_stay(tmp_path):
    clock = Clock()
    store = Store(tmp_path, clock)
    store.sync("upload")
    store.keep("upload")
    file = store.records.add("file", "a", {}, media="upload", expires=clock() + 10)
    parent = store.records.add("cache", "b", {}, expires=clock() + 20)
    pinned = store.records.add("pinned", "c", {}, parent=parent, media="upload")
    path = store.path(file)
    clock.ahead = 11
    store.sweep()
    assert store.records.get("file", "a", expired=True) is None and path.exists()
    assert store.path(pinned) == path
    clock.ahead = 21
    store.sweep()
    assert store.records.get("pinned", "c") is None and not path.exists()
    store.close()


def test_an_update_lays_over_what_others_wrote_and_brings_nothing_back(tmp_path):
    records = Records(tmp_path / "a.sqlite")
    record = records.add("kind", "a", {"x": 1, "y": 1})
    records.update(record, {"x": 2})
    updated = records.update(record, {"y": 2})
    assert updated.data == {"x": 2, "y": 2}
    records.delete(record)
    records.add("kind", "a", {"x": 0})
    assert records.update(record, {"x": 3}) is None and records.get("kind", "a").data == {"x": 0}


def test_the_room_of_deleted_records_goes_back_to_the_disk(tmp_path):
    store = Store(tmp_path)
    record = store.records.add("kind", "a", {"a": "x" * 5_000_000})
    store.sweep()
    size = sum(file.stat().st_size for file in tmp_path.glob("pollux.sqlite*"))
    store.delete(record)
    store.sweep()
    assert sum(file.stat().st_size for file in tmp_path.glob("pollux.sqlite*")) < size - 4_500_000
    store.close()


def test_many_threads_write_to_one_database(tmp_path):
    records = Records(tmp_path / "a.sqlite")
    threads = [threading.Thread(target=lambda: [records.add("kind", new_id(20), {}) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({record.number for record in records.all("kind")}) == 160


def test_a_full_disk_is_an_error_of_the_api_and_others_are_not(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(FileNotFoundError):
        store.keep("never written")
    with pytest.raises(ApiError, match="disk of the server is full"), space():
        raise OSError(28, "No space left on device")
    store.close()
