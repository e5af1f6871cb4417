"""Gunicorn as the tests run it: the role's worker in two processes, and every log line as JSON."""

import gunicorn_worker

from app.logging import logging_config

_slots = gunicorn_worker.start_slots()
worker_class = gunicorn_worker.worker(
    _slots,
    probe_file="/nonexistent",
    health_path="/health/ready",
    host="localhost",
    release_header="X-Release",
)
logger_class = gunicorn_worker.AccessLogger
workers = 2
asgi_loop = "uvloop"
asgi_lifespan = "on"
backlog = 4096
control_socket_disable = True
worker_tmp_dir = "/dev/shm"  # noqa: S108
graceful_timeout = 5
keepalive = 75
logconfig_dict = logging_config("INFO")
post_fork = gunicorn_worker.post_fork_hook(_slots, None)
child_exit = gunicorn_worker.child_exit_hook(_slots, None)
