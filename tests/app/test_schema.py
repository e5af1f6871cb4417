"""Schemathesis: every response matches the OpenAPI document."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn

from app.auth import SCOPES, Tokens
from app.main import create_app
from app.settings import Settings

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "10")


@pytest.fixture
def address(service: Callable[..., Settings]) -> Iterator[str]:
    """Run a service in a thread and yield its URL."""
    app = create_app(service(), lambda _: None)
    config = uvicorn.Config(
        app, port=0, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=10
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def test_every_response_matches_the_openapi_document(
    address: str, service: Callable[..., Settings], tmp_path: Path
) -> None:
    token = Tokens(service()).issue("ann", frozenset(SCOPES), 600)
    report = tmp_path / "junit.xml"
    # Excluded check: a replayed idempotency key can return a product that was deleted since.
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{address}/api/openapi.json"),
        *("--header", f"Authorization: Bearer {token}"),
        *(
            "--checks",
            "all",
            "--exclude-checks",
            "ensure_resource_availability",
            "--max-examples",
            EXAMPLES,
            "--seed",
            "1",
            "--generation-deterministic",
        ),
        *("--request-timeout", "20", "--report", "junit", "--report-junit-path", str(report), "--no-color"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
