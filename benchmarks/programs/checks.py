"""What the programs beside this share: checks that run one after the other, each with its verdict as a line of JSON on standard output."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

URL = os.environ["PROGRAMS_SERVER"]  # such as http://127.0.0.1:8000
FILES = Path(os.environ["PROGRAMS_FILES"])
MODEL = "gemini-2.5-flash"  # an alias of whatever is served
WEATHER = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}}, "required": ["city"]}


def run(*checks: Callable[[], object]) -> None:
    """Each check is called once; it fails by raising. What it prints goes to standard error."""
    for check in checks:
        reason = ""
        with contextlib.redirect_stdout(sys.stderr):
            try:
                check()
            except Exception as error:
                traceback.print_exc()
                frame = traceback.extract_tb(error.__traceback__)[-1]
                reason = f"{type(error).__name__}: {error}" if str(error) else f"{type(error).__name__} at {frame.line}"
        print(json.dumps({"check": check.__name__.replace("_", " "), "reason": reason}), flush=True)


def picture() -> bytes:
    """A PNG: a red disc on grey."""
    return (FILES / "disc.png").read_bytes()


def pdf() -> bytes:
    """Two pages of text."""
    return (FILES / "pages.pdf").read_bytes()


def is_unit(vector: list[float]) -> bool:
    return abs(math.hypot(*vector) - 1) < 1e-4
