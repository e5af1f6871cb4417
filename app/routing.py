"""The short way from a route to its answer, for the routes that are asked most."""

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


class ShortRoute(APIRoute):
    """Where an endpoint takes the request and nothing else, FastAPI documents it and is not asked again.

    Solving dependencies that are not there, and two exit stacks, would cost more than most answers.
    """

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        if list(inspect.signature(endpoint).parameters) == ["request"] and not self.dependencies:
            self.app = app


def parameters(model: type[BaseModel], place: str) -> dict[str, Any]:
    """Return what documents the fields of a model as parameters of a short route."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    return {
        "parameters": [
            {"name": name, "in": place, "required": name in required, "schema": field}
            for name, field in schema["properties"].items()
        ]
    }


def body(model: type[BaseModel]) -> dict[str, Any]:
    """Return what documents a model, which another route takes too, as the body of a short route."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def parse(model: type[M], place: str, value: Any) -> M:
    """Return what a part of a request says or raise what FastAPI would."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = [{**fault, "loc": (place, *fault["loc"])} for fault in error.errors()]
        raise RequestValidationError(faults) from None


async def read_body(request: Request) -> bytes:
    """Return the whole body; an answer before it has come, even a refusal, would cut its sender off."""
    try:
        return await request.body()
    except ClientDisconnect:
        raise HTTPException(400, "The body is not complete.") from None


def parse_body(model: type[M], request: Request, text: bytes) -> M:
    """Return what a JSON body says or raise what FastAPI would."""
    if not JSON.match(request.headers.get("content-type", "")):
        raise _invalid("Content-Type must be application/json")
    try:
        return parse(model, "body", orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise _invalid(f"JSON decode error: {error}") from None


def _invalid(reason: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body",), "msg": reason}])
