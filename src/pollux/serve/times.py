"""Points in time as the API writes them."""

from __future__ import annotations

import datetime


def rfc3339(seconds: float) -> str:
    """Seconds since 1970 as "2030-01-31T12:00:00.123456Z"."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
