"""Routes without FastAPI's dependency solving, for the busiest requests, and their parsing."""

import inspect
import re
from typing import Any, TypeVar

import orjson
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

M = TypeVar("M", bound=BaseModel)
JSON = re.compile(r"application/([\w.+-]+\+)?json\s*(;|$)", re.IGNORECASE)


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request and returns the response; FastAPI only documents it.

    Dependency solving and two exit stacks would cost more than most endpoints. The endpoint parses and
    authorizes the request itself. Choose it with `APIRouter(route_class=DirectRoute)`; an endpoint with
    other parameters or dependencies raises TypeError.
    """

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if list(inspect.signature(endpoint).parameters) != ["request"] or self.dependencies:
            raise TypeError(f"{endpoint.__qualname__}: a DirectRoute takes the request only, no dependencies")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = app


def parameters(model: type[BaseModel], location: str) -> dict[str, Any]:
    """Return the OpenAPI description of a model's fields as parameters in "path", "query" or "header"."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    return {
        "parameters": [
            {"name": name, "in": location, "required": name in required, "schema": field}
            for name, field in schema["properties"].items()
        ]
    }


def body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a request body; another, ordinary route must use the model too."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def parse(model: type[M], location: str, value: Any) -> M:
    """Return a part of a request as a model, or raise RequestValidationError as FastAPI does."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors = [{**item, "loc": (location, *item["loc"])} for item in error.errors()]
        raise RequestValidationError(errors) from None


async def read_body(request: Request) -> bytes:
    """Return the whole body. Read it before any refusal: an early response would break the upload."""
    try:
        return await request.body()
    except ClientDisconnect:
        raise HTTPException(400, "The request body is incomplete.") from None


def parse_body(model: type[M], request: Request, text: bytes) -> M:
    """Return a JSON body as a model, or raise RequestValidationError as FastAPI does."""
    if not JSON.match(request.headers.get("content-type", "")):
        raise _invalid("Content-Type must be application/json")
    try:
        return parse(model, "body", orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise _invalid(f"JSON decode error: {error}") from None


def _invalid(reason: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body",), "msg": reason}])
