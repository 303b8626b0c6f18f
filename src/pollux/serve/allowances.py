"""Allowances that several servers of one database count together: each tells now and then what it has counted, and hears what all have.

A record has what is used of an allowance and when that was so; it refills evenly, as in limits.py, and ends when it is full again.
"""

from __future__ import annotations

import hashlib

from pollux.serve.limits import Limits
from pollux.serve.records import Records

EXCHANGE_SECONDS = 2.0  # for which a client may use more by asking several servers
KIND = "allowance"


class Allowances:
    """Those of one server."""

    def __init__(self, limits: Limits, records: Records):
        self._limits, self._records = limits, records
        self._told: dict[tuple[str, str], float] = {}  # how much of what was counted here the record has

    def exchange(self) -> None:
        """Blocks. Does nothing where no client has a limit."""
        counted = self._limits.counted()
        if not counted:
            return
        settled = {}
        with self._records.transaction():
            now, found = self._records.clock(), {record.name: record for record in self._records.all(KIND)}
            for key, (limit, here) in counted.items():
                name, told = _name(*key), self._told.get(key, 0.0)
                fresh = here - told if here >= told else here  # the limit was taken away and came back
                record = found.get(name)
                used = 0.0 if record is None else max(0.0, record.data["used"] - (now - record.data["when"]) * limit / 60)
                settled[key] = used + fresh
                if fresh:
                    data, expires = {"used": used + fresh, "when": now}, now + 60 * (used + fresh) / limit + 60
                    if record is None:
                        self._records.add(KIND, name, data, expires=expires)
                    else:
                        self._records.update(record, data, expires=expires)
        self._told = {key: here for key, (_, here) in counted.items()}
        for key, used in settled.items():
            self._limits.settle(key, used, counted[key][1])


def _name(client: str, what: str) -> str:
    return hashlib.sha256(f"{what} {client}".encode()).hexdigest()
