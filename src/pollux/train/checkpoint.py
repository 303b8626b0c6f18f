"""Checkpoints of a run: parameters, optimiser state, averages and step in Orbax's format, the position in the data as JSON beside them.

Saving is asynchronous: the step goes on while files are written, and a checkpoint appears under its name only when it is complete, so a
run that is killed at any moment finds the one before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pollux.train.step import State


class Checkpoints:
    """The checkpoints in one folder, the newest `keep` of them."""

    def __init__(self, folder: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, progress: dict[str, Any]) -> None:
        """Start writing the state after `step` and `progress`, a JSON object; waits only for the checkpoint before this one."""
        if jax.default_backend() == "cpu":  # there Orbax would write from views of buffers that the next step overwrites
            state = jax.tree.map(np.array, state)
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)))

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """State and progress after `step`; `like` gives shapes and dtypes (jax.ShapeDtypeStruct)."""
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore())
        )
        return restored.state, restored.progress

    def wait(self) -> None:
        """Until everything is written. Raises what went wrong while writing."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()
