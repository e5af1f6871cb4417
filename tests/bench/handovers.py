"""What clients lose while one instance hands over to the next, by the worker class that serves."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.load.background import loaded

# Readiness that the role's worker class reports itself is Gunicorn's own report with another one.
WORKERS: dict[str, dict[str, Any]] = {
    "Gunicorn's asgi worker": {},
    "uvicorn's worker": {"worker_class": "uvicorn.workers.UvicornWorker"},
}
HANDOVERS = 12
RATE = 300
# Every second request writes: Nginx must not repeat those. Capitals take a fresh connection.
MIX = "rwrwRwrwrW"
QUIET_SECONDS = 3


def plan(url: str, path: str, token: str, product: bytes) -> dict[str, Any]:
    """Return a load of reads and writes of products at a URL."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    write = {"path": path, "method": "POST", "headers": headers, "body": product.decode(), "status": 201}
    requests = {"r": {"path": f"{path}/1", "expect": '"id":1'}, "w": write}
    return {"url": url, "rate": RATE, "mix": MIX, "requests": requests}


def measure_handovers(
    load: dict[str, Any], authority: str, play: Callable[..., None]
) -> dict[str, dict[str, Any]]:
    """Replace the instance again and again under the load, with one worker class after the other."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        ca = Path(scratch, "ca.crt")
        ca.write_text(authority)
        for number, (name, settings) in enumerate(WORKERS.items()):
            given = ("-e", json.dumps({"app_gunicorn": settings}))
            play("playbooks/app.yml", *given)
            with loaded({**load, "ca": str(ca), "run": f"handovers-{number}"}, Path(scratch)) as running:
                time.sleep(QUIET_SECONDS)
                for _ in range(HANDOVERS):
                    play("playbooks/restart.yml", *given)
                time.sleep(QUIET_SECONDS)
            found[name] = {
                "handovers": HANDOVERS,
                "failed": len(running.report.failures),
                **running.report.figures,
            }
    play("playbooks/app.yml")
    return found
