"""Error tracking with Sentry, if SENTRY_DSN is set: logged errors become events without secrets."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from app.logging import Scrubber, request_ids
from app.settings import Settings


def scrub_event(scrub: Scrubber, event: Any, _hint: Any) -> Any:
    """Return an event with the request's ids and without secrets; for Sentry's before_send."""
    for part in ("request", "user", "server_name", "modules", "breadcrumbs"):
        event.pop(part, None)
    event.setdefault("tags", {}).update(request_ids.get())
    return scrub(event)


@asynccontextmanager
async def error_tracking(settings: Settings) -> AsyncIterator[None]:
    """Report errors to Sentry and flush at the end; without a DSN the SDK is not imported."""
    if not settings.sentry_dsn:
        yield
        return
    import sentry_sdk
    from sentry_sdk.integrations.logging import LoggingIntegration

    sentry_sdk.init(
        dsn=settings.sentry_dsn.get_secret_value(),
        environment=settings.environment,
        release=settings.release,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[LoggingIntegration(level=None, event_level=logging.ERROR)],
        before_send=partial(scrub_event, Scrubber(settings.secrets())),
        include_local_variables=False,
        include_source_context=False,
        max_breadcrumbs=0,
        auto_session_tracking=False,
        send_client_reports=False,
    )
    try:
        yield
    finally:
        await asyncio.to_thread(sentry_sdk.get_client().close)
