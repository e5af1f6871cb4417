"""Errors as RFC 9457 problem details: one shape for everything that can go wrong.

What a client is told about is raised as an HTTPException: its status and its words are public.
"""

from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"
MOST_FAULTS = 100


class ConflictError(HTTPException):
    def __init__(self, detail: str, faults: list[dict[str, str]] | None = None) -> None:
        super().__init__(409, detail)
        self.faults = faults


class UnavailableError(HTTPException):
    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(503, detail, {"Retry-After": str(retry_after)})


class Problem(BaseModel):
    """Documents the shape of every error."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, str]] | None = None


def problem(error: HTTPException, request_id: str, faults: list[dict[str, str]] | None = None) -> Response:
    """Return the problem document of an error; faults are its single ones, each with in, field and detail."""
    title, status = HTTPStatus(error.status_code).phrase, error.status_code
    told = Problem(
        type="about:blank",
        title=title,
        status=status,
        detail=error.detail,
        request_id=request_id,
        errors=faults,
    )
    headers = {**(error.headers or {}), "Cache-Control": "no-store"}
    return Response(told.model_dump_json(exclude_none=True), status, headers, MEDIA_TYPE)


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    # Each method is a route of its own, and a 405 names only the first one's.
    path = getattr(request.scope.get("route"), "path", "")
    if error.status_code == 405:
        own = (error.headers or {}).get("Allow", "").split(", ")
        allowed = {method.upper() for method in request.app.openapi()["paths"].get(path, own)}
        error.headers = {"Allow": ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))}
    return problem(error, request.state.request_id, getattr(error, "faults", None))


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
    return problem(HTTPException(422, detail), request.state.request_id, faults)


# The guard middleware answers what is not listed here.
ERROR_HANDLERS: dict[int | type[Exception], Any] = {
    HTTPException: _on_http_exception,
    RequestValidationError: _on_validation_error,
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of the errors that a route may answer with."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
