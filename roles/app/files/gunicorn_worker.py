"""The Gunicorn side of an instance: worker, logger, metrics slots and hooks.

gunicorn.conf.py imports it from its own directory: every instance has a copy, like its configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import importlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import gunicorn_app
from gunicorn import systemd
from gunicorn.config import validate_callable
from gunicorn.glogging import Logger
from gunicorn.workers.gasgi import ASGIWorker

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class MetricsSlots:
    """Numbered slots for the metrics of a service's processes, each locked by the process that uses it.

    The library's way is a file per process id: each worker that ends would leave its files for good.
    Overlapping instances share the slots, so counters go on through a release.
    """

    def __init__(self, directory: Path) -> None:
        """Use a directory; without another process in it the metrics begin anew."""
        self.directory = directory
        self.number = 0
        self._lock: TextIO | None = None
        locks = [self._try_lock(file.stem) for file in directory.glob("*.slot")]
        if all(locks):
            for file in directory.glob("*.db"):
                file.unlink()
        for lock in filter(None, locks):
            lock.close()

    def take(self) -> None:
        """Give this process the first free slot; after a fork the master keeps its own."""
        for number in itertools.count(1):
            if lock := self._try_lock(number):
                self._clear_gauges(number)
                self.close()
                self.number, self._lock = number, lock
                return

    def close(self) -> None:
        """Give the slot back, unless a process that this one was forked from has it too."""
        if self._lock:
            self._lock.close()

    def use_for_metrics(self) -> None:
        """Make prometheus_client, if the app has it, write this process's metrics into its slot."""
        with contextlib.suppress(ImportError):
            from prometheus_client import values

            values.ValueClass = values.MultiProcessValue(lambda: self.number)

    def clear_free(self) -> None:
        """Remove the gauges of processes that have ended."""
        for file in self.directory.glob("*.slot"):
            if lock := self._try_lock(file.stem):
                self._clear_gauges(file.stem)
                lock.close()

    def _try_lock(self, number: int | str) -> TextIO | None:
        lock = (self.directory / f"{number}.slot").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock

    def _clear_gauges(self, number: int | str) -> None:
        with contextlib.suppress(ImportError):
            from prometheus_client import multiprocess

            multiprocess.mark_process_dead(number, str(self.directory))


class AccessLogger(Logger):
    """Gunicorn's logger without needless work and lines.

    Gunicorn builds the fields of an access line even if its level drops the line, and logs an exception
    again, without its request.
    """

    @property
    def access_log_enabled(self) -> bool:
        """Whether access lines are written."""
        return bool(super().access_log_enabled) and self.access_log.isEnabledFor(logging.INFO)

    def exception(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log the exception that is being handled unless it has been reported."""
        if sys.exception() is not gunicorn_app.reported.get():
            super().exception(msg, *args, **kwargs)


class Busy(asyncio.Protocol):
    """Answers 503 to a connection beyond worker_connections, which Gunicorn's ASGI worker only counts."""

    def connection_made(self, transport: Any) -> None:
        """Answer and close."""
        transport.write(BUSY)
        transport.close()


class Worker(ASGIWorker):
    """Gunicorn's ASGI worker with a startup probe, readiness for systemd, and limits.

    It keeps to `backlog` and `worker_connections`, and adds the release to every response.
    """

    asgi: Any
    slots: MetricsSlots
    # systemd's socket. Gunicorn itself would report ready before a worker has loaded the app.
    notify_socket: str | None = None
    # Holds the name of the instance that has to probe itself.
    probe_file = Path("/nonexistent")
    # Empty: the app has none.
    health_path = ""
    # The name by which clients know the service.
    host = "localhost"
    # Empty adds no header.
    release_header = ""
    # Exists once the instance stops without a successor.
    shutdown_file = os.environ.get("SHUTDOWN_FILE", "")

    def load_wsgi(self) -> None:
        """Load the app."""
        super().load_wsgi()
        name = self.release_header.lower().encode()
        headers = [(name, os.environ["RELEASE"].encode())] if name else []
        self.asgi = gunicorn_app.App(self.asgi, self.log, headers)

    def run(self) -> None:
        """Serve; the worker accepts connections once its startup probe has succeeded."""
        gunicorn_app.watch_tasks(self.loop, self.asgi)
        create_server = self.loop.create_server

        async def listen(protocol: Callable[[], asyncio.Protocol], **options: Any) -> asyncio.Server:
            def admit() -> asyncio.Protocol:
                return protocol() if self.nr_conns < self.cfg.worker_connections else Busy()

            await self.startup_probe(protocol)
            # Without it asyncio shortens the queue of the shared socket to 100.
            server: asyncio.Server = await create_server(admit, backlog=self.cfg.backlog, **options)
            self.report_ready()
            return server

        self.loop.create_server = listen
        super().run()

    async def startup_probe(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Wait until a new instance answers its own health check; until then the old one serves."""
        said = ""
        with contextlib.suppress(OSError):
            while self.alive and self.probe_file.read_text() == os.environ["INSTANCE"]:
                self.notify()
                found = await self.health_fault(protocol)
                if not found:
                    return
                if found != said:
                    said = found
                    self.log.warning("Startup probe: %s", found)
                    self.notify_systemd(f"STATUS={found}")
                await asyncio.sleep(0.1)

    async def health_fault(self, protocol: Callable[[], asyncio.Protocol]) -> str:
        """Return what is wrong with the app's answer on a connection inside this process, or nothing.

        The health path has to answer 200. Without one, any answer of `/` below 500 shows that the app works.
        """
        theirs, ours = socket.socketpair()
        await self.loop.connect_accepted_socket(protocol, theirs)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        path = self.health_path or "/"
        head = (f"GET {path} HTTP/1.1", f"Host: {self.host}", "X-Forwarded-Proto: https", "Connection: close")
        writer.write("\r\n".join([*head, "", ""]).encode())
        try:
            words = (await asyncio.wait_for(reader.readline(), self.cfg.timeout / 3)).split()
        except (OSError, TimeoutError):
            words = []
        finally:
            writer.close()
        if len(words) < 2:
            return f"GET {path} was not answered"
        status = int(words[1])
        good = status == 200 if self.health_path else status < 500
        return "" if good else f"GET {path} answered {status}"

    def report_ready(self) -> None:
        """Notify systemd once every worker accepts connections."""
        listening = Path(os.environ["RUNTIME_DIRECTORY"])
        (listening / f"{self.slots.number}.listens").touch()
        if len(list(listening.glob("*.listens"))) >= self.cfg.workers:
            self.notify_systemd("READY=1\nSTATUS=Serving")

    def notify_systemd(self, state: str) -> None:
        """Send systemd a state of the instance."""
        if self.notify_socket:
            os.environ["NOTIFY_SOCKET"] = self.notify_socket
            systemd.sd_notify(state, self.log, unset_environment=True)

    def close_code(self) -> int:
        """Return the code with which WebSockets are closed."""
        replaced = self.shutdown_file and not Path(self.shutdown_file).exists()
        return gunicorn_app.SERVICE_RESTART if replaced else gunicorn_app.GOING_AWAY

    async def _shutdown(self) -> None:
        """Close WebSockets, and wait for calls that outlive their connections, such as background tasks."""
        for server in self.servers:
            server.close()
        deadline = self.loop.time() + self.cfg.graceful_timeout
        closing = self.loop.create_task(self.asgi.close_sockets(self.close_code()))
        while (self.nr_conns or self.asgi.calls) and self.loop.time() < deadline:
            if self._quick_shutdown:
                break
            await asyncio.sleep(0.05)
        closing.cancel()
        await super()._shutdown()


def start_slots() -> MetricsSlots:
    """Return the metrics slots of this instance; its master takes the first one."""
    slots = MetricsSlots(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
    slots.take()
    slots.use_for_metrics()
    return slots


def worker(
    slots: MetricsSlots, *, probe_file: str, health_path: str, host: str, release_header: str
) -> type[Worker]:
    """Return the worker class of an instance, and take systemd's socket from Gunicorn."""
    Worker.slots = slots
    Worker.notify_socket = os.environ.pop("NOTIFY_SOCKET", None)
    Worker.probe_file = Path(probe_file)
    Worker.health_path = health_path
    Worker.host = host
    Worker.release_header = release_header
    return Worker


def when_ready_hook(app: str, own: Any) -> Callable[[Any], None]:
    """Return a hook that prepares the master, and then runs the operator's own.

    app: The app whose module the master imports once for all workers, or nothing.
    """
    own = validate_callable(1)(own or (lambda _: None))

    def when_ready(server: Any) -> None:
        keep_exit_status(server)
        if app:
            import_once(server, app)
        own(server)

    return when_ready


def keep_exit_status(server: Any) -> None:
    """Keep the status of the first worker that could not start as the instance's own.

    All workers fail alike. Gunicorn raises again for the second one, while it stops because of the first,
    and that error would end it with status 1, after which systemd starts it again.
    """
    stop = server.stop

    def stop_once(graceful: bool = True) -> None:
        server.WORKER_BOOT_ERROR = server.APP_LOAD_ERROR = -1
        stop(graceful)

    server.stop = stop_once


def import_once(server: Any, app: str) -> None:
    """Import the app's module in the master, so that workers share its memory."""
    # What an import creates stays: no garbage to look for, and no write to memory that workers share.
    gc.disable()
    try:
        importlib.import_module(app.partition(":")[0])
    except Exception:
        # Gunicorn reports some errors without their place.
        server.log.exception("The app cannot be imported")
        raise SystemExit(1) from None
    gc.freeze()
    gc.enable()


def post_fork_hook(slots: MetricsSlots, own: Any) -> Callable[[Any, Any], None]:
    """Return a hook that gives a worker its slot, and then runs the operator's own."""
    own = validate_callable(2)(own or (lambda _, __: None))

    def post_fork(server: Any, worker: Any) -> None:
        slots.take()
        own(server, worker)

    return post_fork


def child_exit_hook(slots: MetricsSlots, own: Any) -> Callable[[Any, Any], None]:
    """Return a hook that removes the gauges of a worker that has ended, and then runs the operator's own."""
    own = validate_callable(2)(own or (lambda _, __: None))

    def child_exit(server: Any, worker: Any) -> None:
        slots.clear_free()
        own(server, worker)

    return child_exit
