"""OpenAI's batches: a file of requests, each with its own id, answered when there is time. They are Gemini's batches in another form.

Files come and go through the Gemini API, as with the original; ids may be asked for with or without "batches/" before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from pollux.serve import batches
from pollux.serve.errors import ApiError, not_found
from pollux.serve.listing import owner_of, store_of
from pollux.serve.records import Record
from pollux.serve.server import Server
from pollux.serve.wire.body import read

MOST = 100  # of a list
_STATES = {"SUCCEEDED": "completed", "FAILED": "failed", "CANCELLED": "cancelled", "EXPIRED": "expired"}


@dataclass(frozen=True)
class BatchRequest:
    input_file_id: str = ""
    endpoint: str = ""
    completion_window: str = ""  # whatever it says, batches have two days
    metadata: dict[str, Any] | None = None


class Batches:
    """The handlers."""

    def __init__(self, server: Server):
        self._server = server

    async def create(self, request: Request) -> JSONResponse:
        asked = await read(BatchRequest, request)
        arguments = asked.endpoint, asked.input_file_id, asked.metadata, owner_of(request)
        record = await self._server.run(batches.create_for_openai, self._server, *arguments)
        request.app.state.upkeep.changed()
        return JSONResponse(_described(record))

    async def get(self, request: Request) -> JSONResponse:
        return JSONResponse(_described(await self._asked(request)))

    async def get_all(self, request: Request) -> JSONResponse:
        records = await self._server.run(store_of(self._server).records.newest, "batch", owner_of(request), MOST, None)
        shown = [_described(record) for record in records if record.data.get("endpoint")]
        return JSONResponse({"object": "list", "data": shown, "has_more": False})

    async def cancel(self, request: Request) -> JSONResponse:
        record = await self._asked(request)
        await self._server.run(batches.end, store_of(self._server), record, "BATCH_STATE_CANCELLED")
        request.app.state.upkeep.changed()
        return JSONResponse(_described(await self._asked(request)))

    async def _asked(self, request: Request) -> Record:
        name = request.path_params["batch"].removeprefix("batches/")
        record = await self._server.run(store_of(self._server).records.get, "batch", name)
        if record is None or record.owner != owner_of(request):
            raise not_found(f"there is no batch {name:.80}")
        if not record.data.get("endpoint"):
            raise ApiError(400, "FAILED_PRECONDITION", f"batches/{name:.80} was made through the Gemini API, which also tells of it")
        return record


def _described(record: Record) -> dict[str, Any]:
    data = record.data
    ended, state = data["ended"], _STATES.get(data["state"].removeprefix("BATCH_STATE_"), "in_progress")
    counts = {"total": data["count"], "completed": data["succeeded"], "failed": data["failed"]}
    return {
        "id": f"batches/{record.name}",
        "object": "batch",
        "endpoint": data["endpoint"],
        "input_file_id": data["input"],
        "completion_window": "48h",
        "status": state,
        "output_file_id": data["responses"] or None,
        "error_file_id": None,
        "errors": {"object": "list", "data": [{"message": data["error"]}]} if data["error"] else None,
        "created_at": int(record.created),
        "expires_at": int(record.created + batches.LIFETIME),
        f"{state}_at": int(ended or record.created),
        "request_counts": counts,
        "metadata": data["metadata"],
    }
