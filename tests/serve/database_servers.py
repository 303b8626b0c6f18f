"""PostgreSQL and MariaDB of this machine, started by the tests in a temporary folder on a free port, and ended with them."""

import contextlib
import functools
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

_numbers = itertools.count()


class Servers:
    """The servers that tests have asked for."""

    def __init__(self):
        self._stack = contextlib.ExitStack()
        self._started: dict[str, str] = {}

    def url(self, kind: str) -> str:
        """Of a new, empty database. Skips the test if this machine has no such server."""
        if kind not in self._started:
            self._started[kind] = self._stack.enter_context({"postgresql": _postgresql, "mariadb": _mariadb}[kind]())
        name = f"pollux{os.getpid()}_{next(_numbers)}"
        engine = sqlalchemy.create_engine(self._started[kind], isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return sqlalchemy.make_url(self._started[kind]).set(database=name).render_as_string(hide_password=False)

    def close(self) -> None:
        self._stack.close()


@functools.cache
def _program(name: str, *places: str) -> str:
    """Skips the test if it is nowhere."""
    found = shutil.which(
        name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", *(str(p) for place in places for p in Path("/").glob(place))])
    )
    if found is None:
        pytest.skip(f"{name} is not on this machine (Debian: apt install postgresql mariadb-server)")
    return found


@contextlib.contextmanager
def _folder(user: str) -> Iterator[tuple[Path, dict]]:
    """A folder for a server, and how to run it: never as root."""
    folder = Path(tempfile.mkdtemp(prefix="pollux-database-", dir="/tmp"))
    identity = {}
    try:
        if os.getuid() == 0:
            try:
                account = pwd.getpwnam(user)
            except KeyError:
                pytest.skip(f"there is no user {user} to run the database server as")
            os.chown(folder, account.pw_uid, account.pw_gid)
            identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        yield folder, identity | {"cwd": folder, "env": os.environ | {"HOME": str(folder), "LC_ALL": "C.UTF-8"}}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def _running(command: list, url: str, how: dict) -> Iterator[str]:
    log = how["cwd"] / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **how)
    try:
        engine = sqlalchemy.create_engine(url)
        for _ in range(1200):
            with contextlib.suppress(sqlalchemy.exc.OperationalError):
                engine.connect().close()
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        engine.dispose()
        yield url
    finally:
        process.send_signal(signal.SIGQUIT if "postgres" in url else signal.SIGKILL)  # at once; PostgreSQL has children to take along
        process.wait()


@contextlib.contextmanager
def _postgresql() -> Iterator[str]:
    initdb, server = (_program(name, "usr/lib/postgresql/*/bin") for name in ("initdb", "postgres"))
    with _folder("postgres") as (folder, how):
        data, port = folder / "data", _free_port()
        made = [initdb, "-D", data, "-U", "pollux", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, **how)
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", folder]
        with _running([server, "-D", data, *options], f"postgresql+psycopg://pollux@127.0.0.1:{port}/postgres", how) as url:
            yield url


@contextlib.contextmanager
def _mariadb() -> Iterator[str]:
    install, server = (_program(name) for name in ("mariadb-install-db", "mariadbd"))
    with _folder("mysql") as (folder, how):
        data, port = folder / "data", _free_port()
        plain = ["--no-defaults", f"--datadir={data}", "--innodb-buffer-pool-size=32M"]
        made = [install, *plain, "--auth-root-authentication-method=normal", "--skip-test-db", "--basedir=/usr"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)
        options = ["--bind-address=127.0.0.1", f"--port={port}", f"--socket={folder / 'socket'}"]
        with _running([server, *plain, *options], f"mysql+pymysql://root@127.0.0.1:{port}/mysql", how) as url:
            yield url
