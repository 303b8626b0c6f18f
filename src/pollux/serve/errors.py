"""What goes wrong in a request, and its JSON as the Gemini API writes it: one shape for every route, whoever raised it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from pollux.generate.requests import Cancelled, DeadlineExceeded, Overloaded

log = logging.getLogger("pollux.serve")

STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
RPC_CODES = {  # of google.rpc, by its names
    **{"CANCELLED": 1, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5, "ALREADY_EXISTS": 6, "PERMISSION_DENIED": 7},
    **{"RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9, "ABORTED": 10, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14},
}


class ApiError(Exception):
    """An answer that is an error. code: of HTTP; status: of google.rpc.Code, "" for the usual one; reason: a word for programs."""

    def __init__(self, code: int, status: str, message: str, reason: str = "", headers: dict[str, str] | None = None):
        super().__init__(message)
        self.code, self.message, self.reason, self.headers = code, message, reason, headers or {}
        self.status = status or STATUS.get(code, "UNKNOWN")

    def json(self) -> dict[str, Any]:
        error: dict[str, Any] = {"code": self.code, "message": self.message, "status": self.status}
        if self.reason:
            error["details"] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": self.reason, "domain": "pollux"}]
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.json(), status_code=self.code, headers=self.headers)


def invalid(message: str, reason: str = "") -> ApiError:
    """The person's mistake, 400."""
    return ApiError(400, "INVALID_ARGUMENT", message, reason)


def not_found(message: str) -> ApiError:
    return ApiError(404, "NOT_FOUND", message)


class UnknownModel(ApiError):
    """A model that is not served. name: without "models/"; served: the names and aliases of those that are."""

    def __init__(self, name: str, served: Iterable[str]):
        super().__init__(404, "NOT_FOUND", f"models/{name:.200} is not served here, but {', '.join(served)}")
        self.name = name


def disk_full() -> ApiError:
    return ApiError(507, "RESOURCE_EXHAUSTED", "the disk of the server is full; delete files, or tell its operator", "DISK_FULL")


def api_error(error: BaseException) -> ApiError:
    """Any exception as an answer. What nobody foresaw becomes a 500 without its text, which goes to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, "", str(error.detail), headers=dict(error.headers or {}))
    if isinstance(error, Overloaded):
        return ApiError(429, "RESOURCE_EXHAUSTED", f"{error}; send the request again later", "OVERLOADED", {"Retry-After": "1"})
    if isinstance(error, DeadlineExceeded | TimeoutError):
        return ApiError(504, "DEADLINE_EXCEEDED", str(error) or "the request was not answered in time")
    if isinstance(error, Cancelled):
        return ApiError(503, "UNAVAILABLE", str(error) or "the request was cancelled")
    if isinstance(error, ValueError):
        return ApiError(400, "INVALID_ARGUMENT", str(error))
    log.error("an unforeseen error", exc_info=error)
    return ApiError(500, "INTERNAL", "an internal error occurred; the server's log says which")


def request_error(request: Request, error: Exception) -> ApiError:
    """What went wrong in a request, a wrong address or method included."""
    found = api_error(error)
    if isinstance(error, UnknownModel) and (version := request.scope.get("root_path", "").rpartition("/")[2]):
        return not_found(
            f"models/{error.name:.200} is not found for API version {version}: {found.message}"
        )  # the words of the original first
    if isinstance(error, HTTPException) and found.code == 404:
        return not_found(f"Not Found: there is nothing at {request.url.path}")
    if isinstance(error, HTTPException) and found.code == 405:
        return ApiError(405, "UNIMPLEMENTED", f"{request.method} is not a method of {request.url.path}", headers=found.headers)
    return found
