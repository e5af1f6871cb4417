"""The effect of single choices: the service without one of them, the reference with one of them."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.measure import Host, Load

# SIGKILL, because a graceful stop waits for Nginx's keep-alive connections.
DROP_IN = """set -eu
mkdir -p /run/systemd/system/{service}@.service.d
printf '[Service]\\n{lines}\\n' >/run/systemd/system/{service}@.service.d/choice.conf
systemctl daemon-reload
systemctl kill --signal=KILL '{service}@*.service'
systemctl restart {service}.service"""


@dataclass(frozen=True)
class Choice:
    """A change to a service's unit, and the load that measures its effect."""

    name: str
    load: Load
    lines: tuple[str, ...] = ()

    def apply(self, host: Host) -> None:
        """Restart the service with the change."""
        host.ssh(DROP_IN.format(service=self.load.service, lines="\\n".join(self.lines)))


def _gunicorn(*arguments: str) -> str:
    return f'Environment="GUNICORN_CMD_ARGS={" ".join(arguments)}"'


def choices(ours: Load, reference: Load) -> list[Choice]:
    """Return all choices; the first one of each service is the unchanged service."""
    # The role's hooks hide NOTIFY_SOCKET from Gunicorn, so nothing notifies systemd with uvicorn's worker.
    uvicorn = ("Type=exec", _gunicorn("--worker-class=uvicorn.workers.UvicornWorker"))
    return [
        Choice("ours", ours),
        Choice("ours, 1 worker", ours, (_gunicorn("--workers=1"),)),
        Choice("ours, 3 workers", ours, (_gunicorn("--workers=3"),)),
        Choice("ours, 5 workers", ours, (_gunicorn("--workers=5"),)),
        Choice("ours, workers replaced after 1000 requests", ours, (_gunicorn("--max-requests=1000"),)),
        Choice("ours, uvicorn's worker", ours, uvicorn),
        Choice("ours, access lines thrown away", ours, ("StandardOutput=null",)),
        Choice("reference", reference),
        Choice("reference, 2 workers", reference, (_gunicorn("--workers=2"),)),
        Choice("reference, workers stay", reference, (_gunicorn("--max-requests=0"),)),
        Choice(
            "reference, 2 workers that stay, no middleware",
            reference,
            (_gunicorn("--workers=2", "--max-requests=0"), "Environment=REQUEST_LOG=off"),
        ),
    ]
