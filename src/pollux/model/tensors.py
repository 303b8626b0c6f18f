"""The tensors of safetensors files, each mapped only while it is read, and memory for what becomes of them.

So loading a model takes little more memory than its weights: pages of a file count as the process's as long as they are mapped.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

ALIGNMENT = 64  # bytes
DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.dtype("bfloat16"),
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes

    def read(self) -> np.ndarray:
        """A view of the file, read-only."""
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, DTYPES[self.dtype])
        return np.asarray(np.memmap(self.file, DTYPES[self.dtype], "r", self.offset, self.shape))


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, by name. Raises ValueError for a file that is damaged or has numbers of an unknown kind."""
    try:
        with safe_open(file, framework="numpy"):  # checks that the header fits the file
            pass
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or incomplete: {error}") from error
    with open(file, "rb") as opened:  # eight bytes of length, then the header
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    unknown = {entry["dtype"] for entry in header.values()} - set(DTYPES)
    if unknown:
        raise ValueError(f"{file} has tensors of {', '.join(sorted(unknown))}; pollux reads {', '.join(DTYPES)}")
    return {
        name: StoredTensor(file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to fill, at an address from which JAX on a CPU takes it over without a copy (`jax.device_put`)."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
