"""What the programs beside this share: checks that run one after the other, each with its verdict as a line of JSON on standard output."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable

import numpy as np

URL = os.environ["PROGRAMS_SERVER"]  # such as http://127.0.0.1:8000
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
    import io

    import PIL.Image

    rows, columns = np.mgrid[:64, :64]
    disc = (rows - 32) ** 2 + (columns - 32) ** 2 < 400
    file = io.BytesIO()
    PIL.Image.fromarray(np.where(disc[..., None], (220, 30, 30), (128, 128, 128)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def pdf() -> bytes:
    """Two pages, each with that picture."""
    import io

    import PIL.Image

    pages = [PIL.Image.open(io.BytesIO(picture())).convert("RGB") for _ in range(2)]
    file = io.BytesIO()
    pages[0].save(file, "PDF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def is_unit(vector: list[float]) -> bool:
    return abs(float(np.linalg.norm(vector)) - 1) < 1e-4
