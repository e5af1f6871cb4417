"""One JSON object a line: access lines on standard output, everything else on standard error."""

import asyncio
import atexit
import logging
import logging.config
import os
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import orjson
from pythonjsonlogger.orjson import OrjsonFormatter

# The request id and, if the caller sent one, the trace id of the request being served.
request_ids: ContextVar[dict[str, str]] = ContextVar("request_ids", default={})  # noqa: B039  (never changed)


class JsonFormatter(OrjsonFormatter):
    """Adds what is being served; a line break inside a value is escaped by JSON, so a line is one record."""

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return log_data | request_ids.get()


def logging_config(level: str) -> dict[str, Any]:
    """Return the dictConfig that sends every logger, Gunicorn's too, to standard error as JSON."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {
                "()": "app.logging.JsonFormatter",
                "fmt": ["levelname", "name", "message"],
                "rename_fields": {"levelname": "level", "name": "logger"},
                "timestamp": "time",
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": level, "handlers": [], "propagate": True},
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
        },
    }


def configure_logging(level: str) -> None:
    """Set up this process's logging; called by the entry points, never on import."""
    logging.config.dictConfig(logging_config(level))
    logging.captureWarnings(True)


class AccessLog:
    """Writes access lines straight to standard output, those of a hundredth of a second together.

    A Logger costs a quarter of a small request, a system call a tenth.
    """

    SECONDS = 0.01
    MOST_BYTES = 32_768  # the workers share the stream, and the kernel takes this much in one piece

    def __init__(self) -> None:
        self._text = bytearray()
        atexit.register(self._write)

    def __call__(self, fields: dict[str, Any]) -> None:
        line = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
        if len(self._text) + len(line) > self.MOST_BYTES:
            self._write()
        if not self._text:
            asyncio.get_running_loop().call_later(self.SECONDS, self._write)
        self._text += line

    def _write(self) -> None:
        text, self._text = self._text, bytearray()
        with suppress(OSError):  # a log that is gone is no reason to fail a request
            while text:
                text = text[os.write(1, text) :]
