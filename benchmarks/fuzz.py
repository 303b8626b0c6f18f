"""Requests that nobody sends on purpose, to a real server: how each route answers them, and what they leave behind.

    .venv/bin/python benchmarks/fuzz.py --requests 5000

Starts `pollux serve` with a tiny model of random weights that reads and draws, and sends requests derived from the messages that the
server reads, right ones, nearly right ones and hostile ones, on every route. Prints the number of answers by route and status. Exits with
1 if one was an error of the server, had no or the wrong form, or never came, or if something is left of them in the server.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "serve"))

from fuzzing.run import Report, Target  # noqa: E402
from small_program import serving  # noqa: E402


def show(report: Report) -> None:
    for route, statuses in report.routes().items():
        print(f"{statuses.total():6} {route}: " + ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items())))
    print(f"{report.requests:6} requests")


def main(requests: int = 5000, seed: int = 0, log: Path = Path("/dev/null")) -> None:
    """Send the requests and print what came of them.

    Args:
        requests: How many.
        seed: Of what they are made of.
        log: File for what the server writes to stderr.
    """
    with serving(log=log) as (port, process):
        target = Target(port, process.pid)
        begun = time.perf_counter()
        report = target.fuzz(requests, seed)
        show(report)
        print(f"in {time.perf_counter() - begun:.0f} s; the server then holds {target.state()}")
    if report.failures or report.left:
        print(report.described())
        raise SystemExit(1)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
