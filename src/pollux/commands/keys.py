"""`pollux keys`: who may use a server. A server that runs sees changes at once."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path

import tyro

from pollux.commands.settings import DATABASE, MaybeNumber, MaybePath, Url, data_folder
from pollux.serve.keys import Keys
from pollux.serve.records import Records


def add(
    name: tyro.conf.Positional[str],
    /,
    data: MaybePath = None,
    database: Url = DATABASE,
    requests_per_minute: MaybeNumber = None,
    tokens_per_minute: MaybeNumber = None,
) -> None:
    """Make an API key and print it; it is kept as a hash, so it cannot be shown again.

    Example: pollux keys add laptop --tokens-per-minute 100000

    Args:
        name: Whom or what the key is for; files, caches and batches belong to that name.
        data: Data folder of the server, by default $POLLUX_DATA or ~/.local/share/pollux.
        database: URL of the server's database if it has one, by default $POLLUX_DATABASE.
        requests_per_minute: Most requests a minute; otherwise the server's own limit holds.
        tokens_per_minute: Most tokens a minute, read and written; otherwise the server's own limit holds.
    """
    with _keys(data, database) as keys:
        print(keys.add(name, requests_per_minute, tokens_per_minute))


def list_keys(data: MaybePath = None, database: Url = DATABASE) -> None:
    """List the names, dates and limits of all keys.

    Args:
        data: Data folder of the server, by default $POLLUX_DATA or ~/.local/share/pollux.
        database: URL of the server's database if it has one, by default $POLLUX_DATABASE.
    """
    with _keys(data, database) as keys:
        for key in keys.all():
            made = datetime.datetime.fromtimestamp(key.created).isoformat(" ", "minutes")
            per_minute = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
            limits = [f"{limit:,} {what} a minute" for what, limit in per_minute.items() if limit is not None]
            print(f"{key.name:<24} {made}  {', '.join(limits)}".rstrip())


def remove(name: tyro.conf.Positional[str], /, data: MaybePath = None, database: Url = DATABASE) -> None:
    """Forget a key; requests with it are refused from now on.

    Args:
        name: The name it was made with.
        data: Data folder of the server, by default $POLLUX_DATA or ~/.local/share/pollux.
        database: URL of the server's database if it has one, by default $POLLUX_DATABASE.
    """
    with _keys(data, database) as keys:
        keys.remove(name)


@contextlib.contextmanager
def _keys(data: Path | None, database: str) -> Iterator[Keys]:
    if not database:
        folder = data or data_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = str(folder / "pollux.sqlite")
    records = Records(database)  # a Store would want the folder to itself, which a running server has
    try:
        yield Keys(records)
    finally:
        records.close()


def main(arguments: list[str]) -> None:
    """Entry of `pollux keys`."""
    tyro.extras.subcommand_cli_from_dict({"add": add, "list": list_keys, "remove": remove}, prog="pollux keys", args=arguments)
