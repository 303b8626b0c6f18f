"""Records in SQLite, and in servers of PostgreSQL and MariaDB that the tests start: the same claims for all."""

import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy
from sqlalchemy import event
from stored_server import Clock

from pollux.serve.errors import ApiError
from pollux.serve.leases import Leases
from pollux.serve.records import Records, Taken
from pollux.serve.store import new_id


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def records(database, clock):
    with contextlib.closing(Records(database, clock)) as records:
        yield records


@pytest.fixture
def elsewhere(database, clock, records):
    """The same records, as another server sees them."""
    with contextlib.closing(Records(database, clock)) as records:
        yield records


def test_a_record_comes_back_as_it_was_written_also_elsewhere(records, elsewhere):
    data = {"text": "äöü 😀 \0 \ud800", "number": 2**63, "nested": [None, 1.5, {"a": True}]}
    parent = records.add("kind", "parent", {})
    record = records.add("kind", "a", data, "owner", records.clock() + 100, parent, "medium", 2**40)
    assert elsewhere.get("kind", "a") == record and record.data == data
    assert record.expires - record.created == pytest.approx(100, abs=1)
    changed = elsewhere.update(record, {"text": "b"}, size=3)
    assert records.get("kind", "a") == changed and changed.data == data | {"text": "b"}
    assert (changed.size, changed.expires, changed.created, changed.media) == (3, record.expires, record.created, "medium")
    assert records.update(record, {}, expires=None).expires is None


def test_names_are_equal_by_their_letters_and_in_the_order_of_their_bytes(records):
    names = ["a", "A", "b", "a/1", "a-1", "ä", "a0"]
    parent = records.add("parent", "p", {})
    for name in names:
        records.add("kind", name, {}, parent=parent)
    with pytest.raises(Taken):
        records.add("kind", "A", {})
    assert [one.name for one in records.children(parent, "kind")] == sorted(names, key=str.encode)
    assert [one.name for one in records.children(parent, "kind", after="a", most=2)] == ["a-1", "a/1"]
    assert records.names(parent, "kind") == set(names)


@pytest.mark.parametrize("name", ["", "nosuch", "a  ", "nul\0", "half \ud800", "x" * 100_000, "'; DROP TABLE records; --", "%s", ":kind"])
def test_a_name_that_nothing_has_is_not_found_whatever_it_is(records, name):
    records.add("kind", "a", {})
    assert records.get("kind", name) is None
    assert records.get("kind", "a") is not None


def test_pages_go_from_the_newest_to_the_oldest_and_leave_out_what_has_expired(records, clock):
    for i in range(7):
        records.add("kind", str(i), {}, "me", expires=clock() + (10 if i == 3 else 1000))
    records.add("kind", "other", {}, "you")
    clock.ahead = 11
    first = records.newest("kind", "me", 4)
    assert [one.name for one in first] == ["6", "5", "4", "2"]
    assert [one.name for one in records.newest("kind", "me", 4, before=first[-1].number)] == ["1", "0"]
    assert [one.name for one in records.all("kind")] == ["0", "1", "2", "4", "5", "6", "other"]
    assert records.get("kind", "3") is None and records.get("kind", "3", expired=True) is not None


def test_sizes_of_one_owner_are_added_up(records):
    assert records.used("me") == 0
    for owner, size in (("me", 2**40), ("me", 5), ("you", 7)):
        records.add("kind", new_id(10), {}, owner, size=size)
    assert records.used("me") == 2**40 + 5


def test_what_goes_takes_its_children_and_theirs_along_and_notes_media_that_nobody_has(records):
    top = records.add("kind", "top", {}, media="of top")
    middle = records.add("kind", "middle", {}, parent=top, media="shared")
    records.add("other", "below", {}, parent=middle, media="of below")
    records.add("kind", "apart", {}, media="shared")
    records.delete(top)
    assert [one.name for one in records.all("kind")] == ["apart"] and not records.all("other")
    assert sorted(records.dropped()) == ["of below", "of top"]
    records.forget("of top")
    assert records.dropped() == ["of below"]


def test_the_medium_of_an_upload_that_ends_without_a_file_is_dropped_and_that_of_a_file_stays(records, clock):
    for name in ("lost", "kept"):
        records.add("upload", name, {}, expires=clock() + 10)
    records.add("file", "a", {}, media="kept")
    clock.ahead = 11
    records.expire()
    records.expire()
    assert records.dropped() == ["lost"] and not records.all("upload")


def test_a_transaction_that_raises_leaves_nothing_and_its_thread_can_go_on(records):
    with pytest.raises(RuntimeError), records.transaction():
        records.add("kind", "a", {})
        raise RuntimeError
    assert records.get("kind", "a") is None
    with pytest.raises(sqlalchemy.exc.DBAPIError), records.transaction():
        records.add("kind", "a", {})
        records._database.execute(sqlalchemy.text("INSERT INTO records (kind) VALUES ('a')"))
    assert records.get("kind", "a") is None
    with records.transaction(), records.transaction():
        records.add("kind", "a", {})
    assert records.get("kind", "a") is not None


def test_what_a_transaction_has_read_stays_true_until_its_end_in_all_servers(records, elsewhere):
    """Each of many adds one to the same number, reading it first."""
    records.add("kind", "sum", {"value": 0})

    def count(which: Records):
        for _ in range(10):
            with which.transaction():
                now = which.get("kind", "sum")
                which.update(now, {"value": now.data["value"] + 1})

    threads = [threading.Thread(target=count, args=(which,)) for which in (records, elsewhere) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records.get("kind", "sum").data == {"value": 60}


def test_it_does_not_matter_what_isolation_a_database_gives_by_itself(database_servers):
    url = database_servers.url("postgresql")
    with contextlib.closing(Records(url)) as records:
        name = sqlalchemy.make_url(url).database
        records._database.execute(sqlalchemy.text(f"ALTER DATABASE {name} SET default_transaction_isolation TO 'repeatable read'"))
    with contextlib.closing(Records(url)) as here, contextlib.closing(Records(url)) as there:
        here.add("kind", "a", {"value": 0})
        begun = threading.Event()

        def change():
            begun.set()
            with there.transaction():
                there.update(there.get("kind", "a"), {"value": there.get("kind", "a").data["value"] + 1})

        with here.transaction():
            thread = threading.Thread(target=change)
            thread.start()
            begun.wait()
            time.sleep(0.3)  # it waits for its turn
            here.update(here.get("kind", "a"), {"value": 1})
        thread.join()
        assert here.get("kind", "a").data == {"value": 2}


@pytest.mark.slow
def test_a_server_whose_machine_is_gone_in_a_transaction_holds_up_the_others_for_less_than_two_minutes(database_server, clock):
    """It is stopped, so that its connection stays open and nothing more comes over it."""
    code = "import sys, time; from pollux.serve.records import Records; records = Records(sys.argv[1])"
    code += "\nwith records.transaction(): records.add('kind', 'lost', {}); print('begun', flush=True); time.sleep(1000)"
    process = subprocess.Popen([sys.executable, "-c", code, database_server], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        with contextlib.closing(Records(database_server, clock)) as records:
            for _ in range(4):  # each waits 30 s for its turn
                with contextlib.suppress(ApiError, Taken):
                    records.add("kind", "a", {})
            assert [record.name for record in records.all("kind")] == ["a"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_limit_on_sizes_holds_when_two_servers_add_at_the_same_time(records, elsewhere):
    def fill(which: Records):
        for _ in range(8):
            with which.transaction():
                if which.used("me") + 10 <= 100:
                    which.add("kind", new_id(20), {}, "me", size=10)

    threads = [threading.Thread(target=fill, args=(which,)) for which in (records, elsewhere)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records.used("me") == 100


def test_a_record_is_seen_by_nobody_before_it_is_committed(records, elsewhere):
    with records.transaction():
        records.add("kind", "a", {})
        assert records.get("kind", "a") is not None
        assert elsewhere.get("kind", "a") is None
    assert elsewhere.get("kind", "a") is not None


def test_many_servers_that_start_at_once_make_the_tables_once(database):
    failed, made = [], []

    def begin():
        try:
            made.append(Records(database))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and made[0].add("kind", "a", {}) == made[3].get("kind", "a")
    for records in made:
        records.close()


def test_a_database_of_a_later_pollux_is_left_alone(database, records):
    statement = "PRAGMA user_version = 99" if "://" not in database else "UPDATE pollux_schema SET version = 99"
    records._database.execute(sqlalchemy.text(statement))
    with pytest.raises(ValueError, match="made by a later version of pollux .schema 99"):
        Records(database)


def test_connections_that_broke_are_made_anew_and_a_database_that_is_gone_is_an_error_of_the_api(database_server, clock):
    def refused(dialect, record, arguments, keywords):
        keywords["host"], keywords["port"] = "127.0.0.1", 1

    with contextlib.closing(Records(database_server, clock)) as records:
        records.add("kind", "a", {})
        with records._database._engine.connect() as connection:
            connection.connection.driver_connection.close()
        assert records.get("kind", "a") is not None

        records._database._engine.dispose()
        event.listen(records._database._engine, "do_connect", refused)
        with pytest.raises(ApiError, match="does not answer") as found:
            records.get("kind", "a")
        assert (found.value.code, found.value.status, found.value.headers["Retry-After"]) == (503, "UNAVAILABLE", "1")
        with pytest.raises(ApiError, match="does not answer"), records.transaction():
            raise AssertionError("there is no transaction")
        event.remove(records._database._engine, "do_connect", refused)
        assert records.get("kind", "a") is not None


def test_a_lease_is_one_servers_until_it_runs_out_or_is_dropped(records, elsewhere, clock):
    ours, theirs = Leases(records, "ours", 30), Leases(elsewhere, "theirs", 30)
    batches = [records.add("batch", name, {}) for name in "abc"]
    assert ours.take(batches[:2]) == {batches[0].number, batches[1].number}
    assert theirs.take(batches) == {batches[2].number}
    clock.ahead = 25
    assert ours.take(batches[:1]) == {batches[0].number}  # renewed
    clock.ahead = 35
    assert theirs.taken(batches[0]) and not theirs.taken(batches[1])
    assert theirs.take(batches) == {batches[1].number, batches[2].number}
    assert ours.take(batches) == {batches[0].number}
    theirs.drop(batches[0])
    assert theirs.take(batches[:1]) == set()
    ours.drop(batches[0])
    assert theirs.take(batches[:1]) == {batches[0].number}
    records.delete(batches[0])
    assert not records.get("lease", str(batches[0].number))


def test_of_many_servers_that_want_a_lease_one_gets_it(records, elsewhere):
    batch = records.add("batch", "a", {})
    leases = [Leases(which, new_id(8), 30) for which in (records, elsewhere) for _ in range(4)]
    got = []
    threads = [threading.Thread(target=lambda lease=lease: got.extend(lease.take([batch]))) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [batch.number]


def test_a_clock_that_is_wrong_is_noticed_at_the_start(database_server, monkeypatch):
    Records(database_server).close()
    now = time.time
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="clock of this machine is 3. s ahead"):
        patch.setattr("pollux.serve.databases.time.time", lambda: now() + 35)
        Records(database_server)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("oracle://host/name", "is of the kind oracle, but must be one of sqlite, postgresql"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/name", r"psycopg://me:\*\*\*@127.0.0.1:1/name cannot be opened as a database: "),
        ("sqlite://", "a database in memory keeps nothing"),
        ("://host/name", "must be like postgresql"),
        ("sqlite:////nosuch/folder/file", "cannot be opened as a database: unable to open"),
    ],
)
def test_a_url_that_cannot_be_a_database_is_refused_with_a_reason_and_without_its_password(url, message):
    with pytest.raises(ValueError, match=message) as found:
        Records(url)
    assert "secret" not in str(found.value)
