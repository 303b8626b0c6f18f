"""What an engine may use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pollux.model.cache import CacheDtype


@dataclass(frozen=True)
class EngineSettings:
    """How much is worked on at once."""

    max_rows: int = 64  # answers
    cache_tokens: int | None = None  # room of the KV cache; None: it grows as needed
    chunk: int = 256  # tokens that are read at once
    longest: int | None = None  # tokens of a prompt with its answer, at most; None: what the cache has room for
    max_queue: int = 1024  # requests that wait
    dispatch_seconds: float = 0.1  # about how long rows write before their tokens are shown
    kv_cache_dtype: CacheDtype | None = None
    spill: Path | None = None  # folder for pages of the cache that there is no room for, and for those of held contexts
    spill_bytes: int = 8 << 30  # most that it takes
    spill_memory: int = 0  # bytes of host memory for the same, which is faster

    def __post_init__(self):
        for name, least in {"max_rows": 1, "chunk": 64, "max_queue": 1, "spill_bytes": 1, "spill_memory": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)} but must be at least {least}")
        if self.cache_tokens is not None and self.cache_tokens < 2 * self.chunk:
            raise ValueError(f"cache_tokens is {self.cache_tokens} but must be at least two chunks, {2 * self.chunk}")
