"""Errors as RFC 9457 problem details: one shape for everything that can go wrong."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, ClassVar

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"
MOST_FAULTS = 100


class ProblemError(Exception):
    """Base of the errors that a client is told about; what it says is public."""

    status: ClassVar[int] = 500
    headers: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        detail: str,
        *,
        headers: dict[str, str] | None = None,
        errors: list[dict[str, str]] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.extra_headers = {**self.headers, **(headers or {})}


class NotFoundError(ProblemError):
    status = 404


class ConflictError(ProblemError):
    status = 409


class UnavailableError(ProblemError):
    status = 503
    headers: ClassVar[dict[str, str]] = {"Retry-After": "1"}


def problem(
    status: int,
    detail: str,
    request_id: str,
    *,
    headers: dict[str, str] | None = None,
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


def _request_id(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


async def _on_problem(request: Request, error: ProblemError) -> Response:
    return problem(
        error.status, error.detail, _request_id(request), headers=error.extra_headers, errors=error.errors
    )


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    details = {
        404: "There is nothing at this address.",
        405: "This address does not support this method.",
        413: "The request body is larger than this service accepts.",
    }
    detail = details.get(error.status_code, error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # Each method is a route of its own, and the error names only the first one's.
        methods = request.app.openapi()["paths"].get(getattr(request.scope.get("route"), "path", ""), {})
        headers["Allow"] = ", ".join(sorted(method.upper() for method in methods)) or headers["Allow"]
    return problem(error.status_code, detail, _request_id(request), headers=headers)


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
    return problem(422, detail, _request_id(request), errors=faults)


# The request middleware answers what is not listed here.
ERROR_HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    ProblemError: _on_problem,
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
