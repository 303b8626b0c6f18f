"""What the server does of itself while it runs: it ends what has expired, and goes on with what its last end interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from pollux.serve import files
from pollux.serve.server import Server

log = logging.getLogger("pollux.serve")

SWEEP_SECONDS = 60.0


@contextlib.asynccontextmanager
async def running(server: Server) -> AsyncIterator[None]:
    """Keep the server's store in order while the block runs; for the lifespan of the app."""
    if server.store is None:
        yield
        return
    await server.run(files.check_unfinished, server.store)
    sweeping = asyncio.create_task(_sweep(server))
    try:
        yield
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)


async def _sweep(server: Server) -> None:
    while True:
        try:
            await server.run(server.store.sweep)
        except Exception:
            log.exception("the store could not be swept")
        await asyncio.sleep(SWEEP_SECONDS)
