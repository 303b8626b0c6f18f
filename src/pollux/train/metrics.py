"""What a run writes down: means over the logged interval as JSON lines and TensorBoard scalars.

The running sums travel with the checkpoint, so that a resumed run writes the very lines of an undisturbed one (times excepted).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

FILE = "metrics.jsonl"
HELD_OUT = "held_out_"  # begins the names of losses on documents that the run does not read; they have lines of their own


class Window:
    """Sums of metrics since the last logged step. A modality's loss counts in the steps that have targets of it."""

    def __init__(self, sums: dict[str, list[float]] | None = None):
        self.sums: dict[str, list[float]] = {} if sums is None else sums  # name -> [sum, steps]

    def add(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if metrics.get(f"{name}_targets", 1) > 0 and (name != "align" or metrics["pairs"] > 0):
                entry = self.sums.setdefault(name, [0.0, 0])
                entry[0] += value
                entry[1] += 1

    def means(self) -> dict[str, float]:
        return {name: total / steps for name, (total, steps) in self.sums.items()}


class Log:
    """OUT/metrics.jsonl and OUT/tensorboard; begins after `step`, and forgets later lines of a run that was killed."""

    def __init__(self, out: Path, step: int):
        lines = [line for line in read(out) if line["step"] <= step]
        write_whole(out / FILE, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = (out / FILE).open("a", buffering=1)
        self._board: SummaryWriter | None = None
        self._board_options: dict[str, Any] = {"logdir": str(out / "tensorboard"), "purge_step": step + 1 if step else None}

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        if self._board is None:
            from tensorboardX import SummaryWriter  # not before the first line: it can take a second

            self._board = SummaryWriter(**self._board_options)
        for name, value in line.items():
            if name != "step":
                self._board.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read(out: Path) -> list[dict[str, Any]]:
    """The lines of a run so far; a last line that was cut off while it was written is not one."""
    path = out / FILE
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once, so that a killed run leaves the old or the new one and never a part."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
