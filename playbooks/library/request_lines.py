#!/usr/bin/python3
"""Find one request's lines in a host's journal and log files."""

from __future__ import annotations

import gzip
import json
import re
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: request_lines
short_description: Find the lines that nginx, the service and Postgres wrote about one request
description:
  - Looks through the journal, with what other hosts have sent here, and through nginx' and Postgres' files.
  - Postgres names a request while the service's C(LOG_LEVEL) is DEBUG; otherwise its lines about a slow
    statement are found by what the service has logged about it, handed over in O(statements).
author: Fastmetal
options:
  request_id: {type: str, required: true, description: "The request's id, or its trace's."}
  hours: {type: int, default: 48, description: "How far back to look."}
  statements:
    description: Slow statements, as RV(statements) of every host, whose lines to find instead of the id's.
    type: list
    elements: dict
    suboptions:
      backend: {type: int, required: true, description: "Process id of the session's server process."}
      begin: {type: float, required: true, description: "When it began, in seconds since 1970."}
      end: {type: float, required: true, description: "When it had ended."}
"""

RETURN = r"""
lines: {type: list, returned: always, description: "Each with host, source, begin and line."}
statements: {type: list, returned: always, description: "Slow statements that the service has logged."}
"""

EXAMPLES = r"""
- name: Find the lines
  request_lines:
    request_id: 0123456789abcdef
"""

FILES = {"nginx": "/var/log/nginx/access.log*", "postgres": "/var/log/postgresql/fastmetal.json*"}
# How far the clocks of two hosts may be apart.
SKEW_SECONDS = 1.0


def in_files(pattern: re.Pattern[bytes], oldest: float) -> Iterator[tuple[str, str, bytes]]:
    """Yield (host, source, line) of what matches in files, rotated ones too."""
    for source, files in FILES.items():
        for file in Path("/").glob(files[1:]):
            if file.stat().st_mtime < oldest:
                continue
            with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
                yield from ((socket.gethostname(), source, line) for line in stream if pattern.search(line))


def in_journal(module: AnsibleModule, pattern: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield (host, source, line) of what matches in the journal of this host and in those sent here."""
    command = ["journalctl", "--quiet", "--merge", "--no-pager", f"--since=-{module.params['hours']}h"]
    shown = "--output-fields=MESSAGE,SYSLOG_IDENTIFIER,_HOSTNAME"
    code, out, err = module.run_command(
        [*command, "--output=json", shown, f"--grep={pattern}", "--case-sensitive"]
    )
    # 1: nothing matched.
    if code not in {0, 1}:
        module.fail_json(msg=f"The journal cannot be read: {err.strip()}")
    for entry in map(json.loads, out.splitlines()):
        source = entry.get("SYSLOG_IDENTIFIER", "")
        if isinstance(entry["MESSAGE"], str):
            text = entry["MESSAGE"].encode()
            yield entry.get("_HOSTNAME", ""), source if source in FILES else "app", text


def ended(source: str, line: dict[str, Any]) -> float:
    """Return when a line was written."""
    if source == "nginx":
        return float(line["ended"])
    if source == "postgres":
        # Its clock's zone is a name that Python does not read; base sets UTC everywhere.
        moment = line["timestamp"].rpartition(" ")[0]
        return datetime.fromisoformat(f"{moment}+00:00").timestamp()
    return datetime.fromisoformat(line["time"]).timestamp()


def lasted(source: str, line: dict[str, Any]) -> float:
    """Return the seconds that a line tells of."""
    if source == "nginx":
        return float(line["duration"])
    if source == "postgres":
        found = re.search(r"duration: ([0-9.]+) ms", line.get("message", ""))
        return float(found[1]) / 1000 if found else 0.0
    return float(line.get("duration_ms", 0)) / 1000


def belongs(source: str, line: dict[str, Any], request_id: str, statements: list[dict[str, Any]]) -> bool:
    """Tell whether a line that holds the id, or a slow statement's process, is really about it."""
    if source != "postgres":
        return not statements and request_id in {line.get("request_id"), line.get("trace_id")}
    if not statements:
        return request_id in line.get("application_name", "").split()
    at = ended(source, line)
    return any(
        line.get("pid") == known["backend"]
        and known["begin"] - SKEW_SECONDS <= at <= known["end"] + SKEW_SECONDS
        for known in statements
    )


def main() -> None:
    """Run the module."""
    statement = {
        "backend": {"type": "int", "required": True},
        "begin": {"type": "float", "required": True},
        "end": {"type": "float", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "request_id": {"type": "str", "required": True},
            "hours": {"type": "int", "default": 48},
            "statements": {"type": "list", "elements": "dict", "options": statement},
        },
        supports_check_mode=True,
    )
    request_id, statements = module.params["request_id"], module.params["statements"] or []
    backends = "|".join(str(known["backend"]) for known in statements)
    pattern = f'"pid":({backends}),' if statements else re.escape(request_id)
    found = [*in_journal(module, pattern)]
    found += in_files(re.compile(pattern.encode()), time.time() - module.params["hours"] * 3600)
    lines, slow, seen = [], [], set()
    for host, source, text in found:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        # A line may have been sent twice, or be both in its file and in the journal.
        if not isinstance(line, dict) or (host, text.strip()) in seen:
            continue
        seen.add((host, text.strip()))
        if not belongs(source, line, request_id, statements):
            continue
        end = ended(source, line)
        begin = end - lasted(source, line)
        lines.append({"host": host, "source": source, "begin": begin, "line": line})
        if "backend" in line:
            slow.append({"backend": line["backend"], "begin": begin, "end": end})
    module.exit_json(changed=False, lines=lines, statements=slow)


if __name__ == "__main__":
    main()
