"""The short way from a route to its answer, for the routes that are asked most."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

M = TypeVar("M", bound=BaseModel)


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


def parse(model: type[M], place: str, values: Mapping[str, Any]) -> M:
    """Return the parameters of a request or raise what FastAPI would."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        faults = [{**fault, "loc": (place, *fault["loc"])} for fault in error.errors()]
        raise RequestValidationError(faults) from None
