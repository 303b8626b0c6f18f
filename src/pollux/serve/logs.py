"""The server's log: one JSON object a line on stderr, without what people wrote, their keys or the names of their files.

observe.py writes a line for each request; other modules log through `logging.getLogger("pollux.serve")`. Of an exception the log keeps
its type and where it was raised, but not its message, which may quote a request.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
import traceback
from typing import Any, TextIO

NAME = "pollux.serve"


class JsonLines(logging.Formatter):
    """A record as a line of JSON: time, level, message, the mapping in its `fields`, and the frames of its exception."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "message": record.getMessage().strip()}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _chain(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def configure(stream: TextIO | None = None) -> None:
    """Send the lines of the server and of uvicorn's errors to a stream (stderr)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in ((NAME, logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _chain(error: BaseException) -> list[dict]:
    """The exception and those it came from, the last one first."""
    found: list[dict] = []
    current: BaseException | None = error
    while current is not None and len(found) < 5:
        frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(current.__traceback__)]
        found.append({"type": type(current).__qualname__, "frames": frames[-12:]})
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return found
