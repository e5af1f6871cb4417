"""Routes without FastAPI's dependency solving, and the one parser of requests."""

import copy
import gc
import inspect
import re
from typing import Any, ClassVar, TypeVar

import orjson
from fastapi import APIRouter, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Security
from fastapi.routing import APIRoute
from fastapi.utils import generate_unique_id
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, compile_path
from starlette.types import Receive, Scope, Send

from app.auth import authorize

M = TypeVar("M", bound=BaseModel)
JSON = re.compile(r"application/(?:[\w.+-]+\+)?json")
# Naming each of a body's 95,000 unknown fields would block the worker for 0.2 s.
MAX_UNKNOWN_FIELDS = 10


class Input(BaseModel):
    """Base of request bodies and queries; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")
    # Limit of a body, in addition to the setting MAX_BODY_BYTES.
    max_bytes: ClassVar[int | None] = None

    @model_validator(mode="before")
    @classmethod
    def _count_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + MAX_UNKNOWN_FIELDS:
            known = ", ".join(cls.model_fields)
            raise ValueError(f"has {len(value)} fields; the known fields are {known}")
        return value


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request and its parsed body, if any, and returns the response.

    Dependency solving and two exit stacks would cost more than most endpoints, so FastAPI only documents the
    route. Each request passes the same steps: read the body, check the scopes of `require_scope`, which are
    the only possible dependencies, and parse the body as the model that annotates the endpoint's second
    parameter. The endpoint parses the rest by `parse`. Choose it with `APIRouter(route_class=DirectRoute)`.
    """

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        first, *others = inspect.signature(endpoint, eval_str=True).parameters.values()
        models = [other.annotation for other in others]
        if (
            first.name != "request"
            or len(models) > 1
            or not all(issubclass(model, Input) for model in models)
        ):
            raise TypeError(f"{endpoint.__qualname__}: a DirectRoute takes the request and at most one Input")
        scopes: list[str] = []
        for dependency in self.dependencies:
            if not isinstance(dependency, Security):
                raise TypeError(f"{endpoint.__qualname__}: a DirectRoute has no dependencies except scopes")
            scopes += dependency.scopes or ()

        async def read(request: Request) -> list[Input]:
            # Before any refusal: an early response would break the upload.
            texts = [await read_body(request, model.max_bytes) for model in models]
            # Before the parser, whose time only clients with a token may take.
            for needed in scopes:
                await authorize(request, needed)
            return [parse_body(model, request, text) for model, text in zip(models, texts, strict=True)]

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive, send)
            response = await (
                endpoint(request, *await read(request)) if models or scopes else endpoint(request)
            )
            await response(scope, receive, send)

        self.app = app


def routes_below(prefix: str, router: APIRouter) -> list[BaseRoute]:
    """Return copies of a router's routes below a prefix; include_router would match each request twice."""
    routes: list[Any] = [copy.copy(route) for route in router.routes]
    for route in routes:
        route.path = prefix + route.path
        route.path_regex, route.path_format, route.param_convertors = compile_path(route.path)
        if isinstance(route, APIRoute):
            route.unique_id = generate_unique_id(route)
    return routes


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


def parse(model: type[M], location: str, value: Any) -> M:
    """Return a part of a request as a model, or raise RequestValidationError as FastAPI does."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    del value  # the traceback would keep it
    raise RequestValidationError([{**item, "loc": (location, *item["loc"])} for item in found])


async def read_body(request: Request, max_bytes: int | None = None) -> bytes:
    """Return the whole body, of at most `max_bytes` and MAX_BODY_BYTES."""
    if max_bytes is not None:
        request.state.max_body_bytes = min(max_bytes, request.state.max_body_bytes)
    try:
        return await request.body()
    except ClientDisconnect:
        raise HTTPException(400, "The request body is incomplete.") from None


def parse_body(model: type[M], request: Request, text: bytes) -> M:
    """Return a JSON body as a model.

    Raises 415 for another content type or coding, 400 for malformed JSON or text that is not UTF-8, and
    RequestValidationError, a 422, for JSON that does not match the model.
    """
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        message = f"The content coding {coding!r} is not supported. Send the body without one."
        raise HTTPException(415, message, {"Accept-Encoding": "identity"})
    if not JSON.fullmatch(request.headers.get("content-type", "").partition(";")[0].strip().lower()):
        raise HTTPException(415, "Content-Type must be application/json.", {"Accept": "application/json"})
    # JSON has no cycles, and looking for them would take 0.2 s of a body with many small lists.
    collects = gc.isenabled()
    gc.disable()
    try:
        return parse(model, "body", orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"The request body is not JSON in UTF-8: {error}.") from None
    finally:
        if collects:
            gc.enable()
