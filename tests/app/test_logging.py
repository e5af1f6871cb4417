"""Log lines: JSON, without secrets, and with the journal's priorities."""

import inspect
import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import Any

from app.logging import HIDDEN, PRIORITIES, JsonFormatter, priority_prefix
from app.settings import Settings
from tests.app.conftest import SECRET, SERVERS

PROGRAM = """
import logging
from app.logging import configure_logging, print_error
configure_logging("DEBUG", ())
for level in ("debug", "info", "warning", "error", "critical"):
    getattr(logging.getLogger("app.test"), level)("a line\\nwith a break")
try:
    raise RuntimeError
except RuntimeError:
    logging.getLogger("gunicorn.error").exception("a traceback")
print_error("The end.")
"""


def written_to_journal(path: Path) -> str:
    """Return what a service writes to standard error if systemd has connected it with the journal."""
    with path.open("wb") as stderr:
        status = os.fstat(stderr.fileno())
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"PYTHONPATH": ":".join(sys.path), "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
            stderr=stderr,
            check=True,
        )
    return path.read_text()


def test_the_journal_finds_errors_by_priority_and_keeps_json(tmp_path: Path) -> None:
    """journald itself splits the stream: systemd-cat connects it as systemd connects a unit's."""
    lines = written_to_journal(tmp_path / "stderr")
    name = f"test-{token_hex(4)}"
    subprocess.run(
        ["ssh", "-F", SERVERS.directory / "ssh_config", "data", f"systemd-cat --identifier={name}"],
        input=lines.encode(),
        check=True,
    )

    def found(*options: str) -> list[str]:
        SERVERS.ssh("data", "journalctl --sync")
        output = SERVERS.ssh("data", f"journalctl -t {name} --output=cat {' '.join(options)}")
        return output.splitlines()

    everything, warnings, errors = found(), found("-p", "warning"), found("-p", "err")
    assert [json.loads(line)["level"] for line in everything[:-1]] == [
        *("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "ERROR")
    ]
    assert warnings == everything[2:]
    assert errors == everything[3:]
    assert errors[-1] == "The end."


def test_a_unit_recognizes_the_journal() -> None:
    """Only systemd knows what it passes to a unit, and the service's packages are not on this host."""
    program = f"import logging, os, sys\nPRIORITIES = {PRIORITIES}\n{inspect.getsource(priority_prefix)}"
    program += "sys.stderr.write(priority_prefix(logging.ERROR) + 'failed')\n"
    name = f"test-{token_hex(4)}"
    SERVERS.ssh("data", f"systemd-run --quiet --wait --unit={name} python3 -c {shlex.quote(program)}")
    found = SERVERS.ssh(
        "data", f"journalctl --sync; journalctl --output=cat -p err _SYSTEMD_UNIT={name}.service"
    )
    assert found.strip() == "failed"


def test_lines_outside_the_journal_have_no_prefix(tmp_path: Path) -> None:
    """Terminals and container runtimes do not strip it; a service may pass JOURNAL_STREAM on to them."""
    with (tmp_path / "stderr").open("wb") as stderr:
        environment = {"PYTHONPATH": ":".join(sys.path), "JOURNAL_STREAM": "1:2"}
        subprocess.run([sys.executable, "-c", PROGRAM], env=environment, stderr=stderr, check=True)
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert [json.loads(line)["message"] for line in lines[:-1]] == ["a line\nwith a break"] * 5 + [
        "a traceback"
    ]


def test_no_line_has_a_secret(service: Callable[..., Settings]) -> None:
    settings = service(DATABASE_PASSWORD="only-the-service-knows")
    formatter = JsonFormatter(fmt=["levelname", "message"], secrets=settings.secrets())
    try:
        raise RuntimeError(f"{SECRET} password=hunter2 postgresql://api:s3cr3t@db only-the-service-knows")
    except RuntimeError as error:
        record = logging.LogRecord("app", logging.ERROR, "", 1, "failed: %s", (error,), sys.exc_info())
    record.statement = f"SELECT '{SECRET}'"
    text = formatter.format(record)
    line: dict[str, Any] = json.loads(text)
    for secret in (SECRET, "hunter2", "s3cr3t", "only-the-service-knows"):
        assert secret not in text
    assert HIDDEN in line["message"]
    assert "RuntimeError" in line["exc_info"]
    assert "test_no_line_has_a_secret" in line["exc_info"]
    assert line["statement"] == f"SELECT '{HIDDEN}'"
