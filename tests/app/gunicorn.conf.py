"""Gunicorn as the tests run it: two native ASGI workers, everything said as JSON."""

from functools import partial
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from app.logging import logging_config

worker_class = "asgi"
workers = 2
asgi_loop = "uvloop"
asgi_lifespan = "on"
backlog = 4096
control_socket_disable = True
worker_tmp_dir = "/dev/shm"  # noqa: S108
graceful_timeout = 5
keepalive = 75
logconfig_dict = logging_config("INFO")


def post_worker_init(worker: Any) -> None:
    """Keep the backlog: the ASGI worker listens again with asyncio's default of 100."""
    worker.loop.create_server = partial(worker.loop.create_server, backlog=worker.cfg.backlog)


def child_exit(_server: Any, worker: Any) -> None:
    """Drop the gauges of a worker that is gone."""
    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
