"""What goes back to a caller when something is wrong: one shape, that of the OpenAI API."""

from __future__ import annotations

from typing import Final, final

from starlette.responses import JSONResponse

from gossip_ledger.errors import UpkeepError
from peer.api import ErrorCode, RequestError

STATUS: Final[dict[ErrorCode, int]] = {
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.UNKNOWN_MODEL: 404,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.PROMPT_TOO_LONG: 400,
    ErrorCode.NO_FUNDS: 402,
    ErrorCode.NO_WORKERS: 503,
    ErrorCode.BUSY: 429,
    ErrorCode.WORKER_LOST: 502,
    ErrorCode.NOT_READY: 503,
}
assert set(STATUS) == set(ErrorCode), "every code needs a status"

OPENAI_CODES: Final[dict[ErrorCode, str]] = {
    ErrorCode.UNKNOWN_MODEL: "model_not_found",
    ErrorCode.PROMPT_TOO_LONG: "context_length_exceeded",
    ErrorCode.NO_FUNDS: "insufficient_quota",
    ErrorCode.BUSY: "rate_limit_exceeded",
}
"""Where OpenAI has a code of its own that clients act on; `upkeep_code` always has ours."""


@final
class FieldError(UpkeepError):
    """A field of a request body is missing, wrong or not supported."""

    def __init__(self, field: str, message: str, *, code: str = "invalid_value") -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.code = code


@final
class BodyError(UpkeepError):
    """A request body that cannot be read at all."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def error_object(
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    upkeep_code: str | None = None,
    retry_after_ms: int | None = None,
) -> dict[str, object]:
    """The body of an error reply."""
    error: dict[str, object] = {"message": message, "type": _type_of(status), "param": param, "code": code}
    error["upkeep_code"] = upkeep_code or code
    if retry_after_ms is not None:
        error["retry_after_ms"] = retry_after_ms
    return {"error": error}


def error_response(status: int, code: str, message: str) -> JSONResponse:
    """An error reply that no exception stands behind."""
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(error_object(status, code, message), status_code=status, headers=headers)


def describe(error: UpkeepError) -> tuple[int, dict[str, object]]:
    """Status and body for an error of ours."""
    message = str(error)
    match error:
        case RequestError():
            status = STATUS[error.code]
            code = OPENAI_CODES.get(error.code, error.code.value)
            body = error_object(
                status, code, message, upkeep_code=error.code.value, retry_after_ms=error.retry_after_ms
            )
            return status, body
        case FieldError():
            return 400, error_object(400, error.code, message, param=error.field, upkeep_code="bad_request")
        case BodyError():
            return error.status, error_object(error.status, error.code, message)
        case _:
            return 500, error_object(500, "local_error", message)


def failure_response(error: UpkeepError) -> JSONResponse:
    """The reply for an error of ours."""
    status, body = describe(error)
    headers: dict[str, str] = {}
    if isinstance(error, RequestError) and error.retry_after_ms is not None:
        headers["retry-after"] = str(-(-error.retry_after_ms // 1000))
        headers["retry-after-ms"] = str(error.retry_after_ms)
    return JSONResponse(body, status_code=status, headers=headers)


def _type_of(status: int) -> str:
    known = {401: "authentication_error", 402: "insufficient_quota", 403: "permission_error"}
    if status in known:
        return known[status]
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
