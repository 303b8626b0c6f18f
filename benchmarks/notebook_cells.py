"""Runs the code cells of one notebook in order, as a notebook would; notebooks.py starts this in a virtual environment of its own.

Standard input holds the cells, a list of texts. For each a line goes to the file that the first argument names: {"reason"}, empty if it
ran. A cell fails if it raises, or if a program that it starts with `!` or `%%bash` ends with an error.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

LONGEST_WAIT = 1.0  # seconds that a cell sleeps between two looks at something; the authors' server needs minutes


def main(report: Path) -> None:
    """Run all cells, also behind one that failed."""
    stand_in_for_colab()
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, LONGEST_WAIT))
    shell = InteractiveShell.instance(colors="NoColor")
    shell.register_magic_function(lambda line: None, "line", "pip")  # what cells need is installed
    shell.ask_exit = lambda: None
    with report.open("w") as lines:
        for source in json.load(sys.stdin):
            print(json.dumps({"reason": run(shell, source)}), file=lines, flush=True)


def run(shell: Any, source: str) -> str:
    """Why the cell failed, "" if it did not."""
    shell.user_ns["_exit_code"] = 0
    lines = source.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
    if lines and lines[first].startswith("%%"):  # titles may stand above it in the authors' tool
        source = "".join(lines[first:])
    result = shell.run_cell(source, store_history=True)
    for name, value in shell.user_ns.items():  # which the calls of curl take for granted
        if name.isupper() and isinstance(value, str):
            os.environ.setdefault(name, value)
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        return f"{type(error).__name__}: {str(error) or error!r}"
    if code := shell.user_ns["_exit_code"]:
        return f"a program that it starts ended with exit code {code}"
    return ""


def stand_in_for_colab() -> None:
    """`from google.colab import userdata`: any secret is a key, which a server on this machine does not ask for."""
    import google

    colab: Any = types.ModuleType("google.colab")
    colab.userdata = types.SimpleNamespace(get=lambda name: "key")
    sys.modules["google.colab"] = google.colab = colab  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
