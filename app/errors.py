"""Errors as RFC 9457 problem details.

Raise an HTTPException for an error that the client may see: its status and detail are public.
"""

from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 100


class ConflictError(HTTPException):
    """409; `errors` lists single errors, each with in, field and detail."""

    def __init__(self, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(409, detail)
        self.errors = errors


class UnavailableError(HTTPException):
    """503 with a Retry-After in seconds."""

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(503, detail, {"Retry-After": str(retry_after)})


class TooManyRequestsError(HTTPException):
    """429 with a Retry-After in seconds."""

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(429, detail, {"Retry-After": str(retry_after)})


class Problem(BaseModel):
    """Documents the shape of every error."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, str]] | None = None


def problem(error: HTTPException, request_id: str, errors: list[dict[str, str]] | None = None) -> Response:
    """Return the problem document of an error; `errors` lists its parts, each with in, field and detail."""
    title, status = HTTPStatus(error.status_code).phrase, error.status_code
    document = Problem(
        type="about:blank",
        title=title,
        status=status,
        detail=error.detail,
        request_id=request_id,
        errors=errors,
    )
    headers = {**(error.headers or {}), "Cache-Control": "no-store"}
    return Response(document.model_dump_json(exclude_none=True), status, headers, MEDIA_TYPE)


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    # Each method is a separate route, and Starlette's 405 lists the method of the first one only.
    path = getattr(request.scope.get("route"), "path", "")
    if error.status_code == 405:
        own = (error.headers or {}).get("Allow", "").split(", ")
        allowed = {method.upper() for method in request.app.openapi()["paths"].get(path, own)}
        error.headers = {"Allow": ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))}
    return problem(error, request.state.request_id, getattr(error, "errors", None))


async def _on_validation_error(request: Request, error: RequestValidationError) -> Response:
    all_errors = error.errors()
    shown = [
        {
            "in": str(item["loc"][0]),
            "field": ".".join(str(part) for part in item["loc"][1:]),
            "detail": str(item["msg"]).removeprefix("Value error, "),
        }
        for item in all_errors[:MAX_ERRORS]
    ]
    listed = f"{len(shown)} errors" if len(shown) == len(all_errors) else f"the first {len(shown)} errors"
    detail = f"The request is not valid. `errors` lists {listed}."
    return problem(HTTPException(422, detail), request.state.request_id, shown)


# GuardMiddleware handles every other exception.
ERROR_HANDLERS: dict[int | type[Exception], Any] = {
    HTTPException: _on_http_exception,
    RequestValidationError: _on_validation_error,
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI `responses` of these error statuses."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
