"""The application factory: `app.main:create_app()` for Gunicorn."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse

from app import __version__, health
from app.auth import Tokens
from app.errors import ERROR_HANDLERS
from app.lifespan import lifespan
from app.logging import AccessLog, configure_logging, print_error
from app.metrics import Metrics
from app.middleware import SECURITY_HEADERS, GuardMiddleware, ProblemCORSMiddleware, RequestMiddleware
from app.products import endpoints as products
from app.routing import routes_below
from app.settings import Settings, SettingsError, load_settings
from app.users import endpoints as users

TRACE_HEADERS = ("X-Request-ID", "traceparent", "tracestate")


def create_app(
    settings: Settings | None = None, access_log: Callable[[dict[str, Any]], None] | None = None
) -> FastAPI:
    """Return the service. Without `settings`, load them from the process and configure logging."""
    if settings is None:
        try:
            settings = load_settings()
        except SettingsError as error:
            print_error(f"The service cannot start: {error}")
            raise SystemExit(error.status) from None
        configure_logging(settings.log_level, settings.secrets())
    # Beside the API's version: with the prefix /api/v1, below /api.
    documents = settings.api_prefix.rpartition("/")[0]
    app = FastAPI(
        title=settings.app_name,
        version=__version__,
        openapi_url=f"{documents}/openapi.json",
        docs_url=f"{documents}/docs" if settings.debug else None,
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers=ERROR_HANDLERS,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.settings = settings
    app.state.metrics = Metrics(settings.release)
    app.state.tokens = Tokens(settings)
    app.state.shutdown = health.Shutdown(settings.shutdown_file)
    # The last middleware added is the outermost.
    app.add_middleware(GuardMiddleware, timeout=settings.request_timeout)
    if settings.cors_origins:
        app.add_middleware(
            ProblemCORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_credentials=settings.cors_allow_credentials,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", *TRACE_HEADERS, *products.REQUEST_HEADERS],
            expose_headers=["X-Request-ID", "Retry-After", *products.RESPONSE_HEADERS],
        )
    app.add_middleware(
        RequestMiddleware,
        metrics=app.state.metrics,
        access_log=access_log or AccessLog(),
        shutdown=app.state.shutdown,
        max_body_bytes=settings.max_body_bytes,
        # The interactive API pages need scripts, which the headers forbid.
        headers=[] if settings.debug else Headers(SECURITY_HEADERS).raw,
    )
    # Routes are matched in this order: the busiest first.
    for router in (products.router, users.router):
        app.router.routes.extend(routes_below(settings.api_prefix, router))
    app.router.routes.extend(health.router.routes)

    async def index(_: Request) -> JSONResponse:
        return JSONResponse({"openapi": f"{documents}/openapi.json", "health": "/health/ready"})

    # A 404 at the root would look like a service that is down.
    app.add_route("/", index, include_in_schema=False)
    return app
