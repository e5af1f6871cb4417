"""Error tracking with Sentry, if SENTRY_DSN is set: logged errors become events without secrets."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app.logging import request_ids
from app.settings import Settings

HIDDEN = "[hidden]"
# Tokens, passwords in URLs, and values whose names suggest a secret.
SECRET_LOOKING = re.compile(
    r"(?i)\b(?:bearer|basic)\s+[\w.~+/=-]+|\beyJ[\w-]+\.[\w-]+\.[\w-]+"
    r"|(?<=[/:@])[^\s/:@]+(?=@)|\b\w*(?:password|passwd|secret|token|api_?key|dsn)\w*['\"]?\s*[:=]\s*\S+"
)


class Scrubber:
    """Removes the service's own secrets, and text that looks like one, from every string of an event."""

    def __init__(self, settings: Settings) -> None:
        self._secrets = sorted(filter(None, settings.secrets()), key=len, reverse=True)

    def __call__(self, event: Any, _hint: Any) -> Any:
        for part in ("request", "user", "server_name", "modules", "breadcrumbs"):
            event.pop(part, None)
        event.setdefault("tags", {}).update(request_ids.get())
        return self._clean(event)

    def _clean(self, value: Any) -> Any:
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, HIDDEN)
            return SECRET_LOOKING.sub(HIDDEN, value)
        if isinstance(value, dict):
            return {name: self._clean(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._clean(item) for item in value]
        return value


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
        before_send=Scrubber(settings),
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
