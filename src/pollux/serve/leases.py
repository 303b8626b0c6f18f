"""What one of several servers does alone, for as long as it lives: it takes a lease and renews it, and when it is gone the lease runs out.

A lease is a record, so all servers of a database agree on who has it; it goes with the record that it is about.
"""

from __future__ import annotations

from collections.abc import Iterable

from pollux.serve.records import Record, Records

LEASE_SECONDS = 60.0
KIND = "lease"


class Leases:
    """The leases that one server takes. holder: its name, which no other has. Its methods block."""

    def __init__(self, records: Records, holder: str, seconds: float = LEASE_SECONDS):
        self._records, self.holder, self.seconds = records, holder, seconds

    @property
    def renewal(self) -> float:
        """Seconds after which to take a lease again that one wants to keep."""
        return self.seconds / 3

    def take(self, about: Iterable[Record]) -> set[int]:
        """Take or renew leases; the numbers of the records that are now this server's."""
        wanted = list(about)
        if not wanted:
            return set()
        with self._records.transaction():
            return {record.number for record in wanted if self._take(record)}

    def taken(self, record: Record) -> bool:
        """Whether some server that lives has the lease of a record."""
        return self._found(record) is not None

    def drop(self, record: Record) -> None:
        """Let another server have it at once."""
        with self._records.transaction():
            found = self._found(record)
            if found is not None and found.data["holder"] == self.holder:
                self._records.delete(found)

    def break_all(self) -> None:
        """Only for a server that knows that it is the only one."""
        for lease in self._records.all(KIND):
            self._records.delete(lease)

    def _take(self, record: Record) -> bool:
        now, name = self._records.clock(), _name(record)
        found = self._records.get(KIND, name, expired=True)
        if found is None:
            self._records.add(KIND, name, {"holder": self.holder}, expires=now + self.seconds, parent=record)
            return True
        assert found.expires is not None
        is_mine = found.data["holder"] == self.holder
        if not is_mine and found.expires > now:
            return False
        if not is_mine or found.expires < now + self.seconds - self.renewal / 2:  # otherwise it is fresh enough
            self._records.update(found, {"holder": self.holder}, expires=now + self.seconds)
        return True

    def _found(self, record: Record) -> Record | None:
        return self._records.get(KIND, _name(record))


def _name(record: Record) -> str:
    return str(record.number)
