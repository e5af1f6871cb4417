"""Errors as RFC 9457 problem details: one shape for everything that can go wrong."""

from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, ClassVar

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"
MOST_FAULTS = 100


class ProblemError(HTTPException):
    """Base of the errors that a client is told about; what it says is public."""

    status: ClassVar[int]

    def __init__(
        self,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: list[dict[str, str]] | None = None,
    ) -> None:
        super().__init__(self.status, detail, headers)
        self.errors = errors


class NotFoundError(ProblemError):
    status = 404


class ConflictError(ProblemError):
    status = 409


class TooLargeError(ProblemError):
    status = 413


class UnavailableError(ProblemError):
    status = 503

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


def problem(
    status: int,
    detail: str,
    request_id: str,
    headers: Mapping[str, str] | None = None,
    errors: list[dict[str, str]] | None = None,
) -> Response:
    """Return a problem document; `type` stays about:blank because the status says it all."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "request_id": request_id,
    }
    if errors is not None:
        body["errors"] = errors
    return Response(orjson.dumps(body), status, {**(headers or {}), "Cache-Control": "no-store"}, MEDIA_TYPE)


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # Each method is a route of its own, and the error names only the first one's.
        methods = request.app.openapi()["paths"].get(request.scope["route"].path, {})
        headers["Allow"] = ", ".join(sorted(method.upper() for method in methods)) or headers["Allow"]
    faults = getattr(error, "errors", None)
    return problem(error.status_code, error.detail, request.state.request_id, headers, faults)


async def _on_validation_error(request: Request, error: RequestValidationError) -> Response:
    all_faults = error.errors()
    faults = [
        {
            "in": str(fault["loc"][0]),
            "field": ".".join(str(part) for part in fault["loc"][1:]),
            "detail": str(fault["msg"]).removeprefix("Value error, "),
        }
        for fault in all_faults[:MOST_FAULTS]
    ]
    detail = f"The request is not valid; `errors` names the faults, {len(faults)} of {len(all_faults)}."
    return problem(422, detail, request.state.request_id, errors=faults)


# The guard middleware answers what is not listed here.
ERROR_HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    HTTPException: _on_http_exception,
    RequestValidationError: _on_validation_error,
}


class Problem(BaseModel):
    """Documents the shape of every error."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, str]] | None = None


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of the errors that a route may answer with."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
