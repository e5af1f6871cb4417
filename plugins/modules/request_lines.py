#!/usr/bin/python3
"""Find the log lines of one request on a host."""

from __future__ import annotations

import gzip
import json
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: request_lines
short_description: Find the log lines of Nginx, the service and Postgres about one request
description:
  - Searches the journal, other hosts' entries in it included, and the log files of Nginx and Postgres.
  - Nginx' error log has no ids. Its lines are found by the connection and the path of the request, and
    returned without queries.
  - Postgres logs a request's id only while the service's C(LOG_LEVEL) is DEBUG. Its lines about slow
    statements are found by process and time, which the service logs; pass these in O(statements).
author: Fastmetal
options:
  request_id: {type: str, required: true, description: "The id of the request or of its trace."}
  hours: {type: int, default: 48, description: "How many hours to search."}
  statements:
    description: Slow statements, from RV(statements) of all hosts, to search instead of the id.
    type: list
    elements: dict
    suboptions:
      backend: {type: int, required: true, description: "The process id of the Postgres session."}
      begin: {type: float, required: true, description: "Its start, in seconds since 1970."}
      end: {type: float, required: true, description: "Its end, in seconds since 1970."}
"""

RETURN = r"""
lines: {type: list, returned: always, description: "Each with host, source, begin and line."}
statements: {type: list, returned: always, description: "The slow statements that the service logged."}
"""

EXAMPLES = r"""
- name: Find the lines
  fastmetal.metal.request_lines:
    request_id: 0123456789abcdef
"""

FILES = {"nginx": "/var/log/nginx/access.log*", "postgres": "/var/log/postgresql/fastmetal.json*"}
NGINX_ERROR = re.compile(
    r"(?P<time>[0-9/]+ [0-9:]+) \[(?P<level>\w+)\] [0-9]+#[0-9]+: \*(?P<connection>[0-9]+) (?P<message>.*)"
)
# The largest difference between the clocks of two hosts.
SKEW_SECONDS = 1.0


def in_files(pattern: re.Pattern[bytes], oldest: float) -> Iterator[tuple[str, str, bytes]]:
    """Yield (host, source, line) of the matching lines in log files, with the rotated ones."""
    for source, files in FILES.items():
        for file in Path("/").glob(files[1:]):
            if file.stat().st_mtime < oldest:
                continue
            with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
                yield from ((socket.gethostname(), source, line) for line in stream if pattern.search(line))


def text_of(line: bytes) -> str:
    """Return a log line as text; clients may send bytes that are not UTF-8."""
    return line.decode(errors="replace").strip()


def in_journal(module: AnsibleModule, pattern: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield (host, source, line) of the matching entries in all journals on this host."""
    command = ["journalctl", "--quiet", "--merge", "--no-pager", f"--since=-{module.params['hours']}h"]
    shown = "--output-fields=MESSAGE,SYSLOG_IDENTIFIER,_HOSTNAME"
    code, out, err = module.run_command(
        [*command, "--output=json", shown, f"--grep={pattern}", "--case-sensitive"]
    )
    # 1: no entry matched.
    if code not in {0, 1}:
        module.fail_json(msg=f"The journal cannot be read: {err.strip()}")
    for entry in map(json.loads, out.splitlines()):
        source = entry.get("SYSLOG_IDENTIFIER", "")
        message = entry["MESSAGE"]
        # journalctl shows a message that is not UTF-8 as a list of its bytes.
        text = message.encode() if isinstance(message, str) else bytes(message or [])
        yield entry.get("_HOSTNAME", ""), source if source in FILES else "app", text


def nginx_errors(module: AnsibleModule, lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the lines of Nginx' error log about the requests in the access lines."""
    requests = [found for found in lines if found["source"] == "nginx" and "connection" in found["line"]]
    if not requests:
        return
    connections = "|".join(sorted({str(found["line"]["connection"]) for found in requests}))
    for host, source, text in in_journal(module, rf"#[0-9]+: \*({connections}) "):
        error = NGINX_ERROR.match(text_of(text)) if source == "nginx" else None
        if not error:
            continue
        at = datetime.strptime(f"{error['time']} +0000", "%Y/%m/%d %H:%M:%S %z").astimezone(UTC).timestamp()
        for found in requests:
            known = (found["host"], str(found["line"]["connection"])) == (host, error["connection"])
            # Requests share a connection over HTTP/2.
            known = known and f" {found['line']['path']}" in error["message"]
            if known and found["begin"] - SKEW_SECONDS <= at <= end_of("nginx", found["line"]) + SKEW_SECONDS:
                message = re.sub(r"\?[^ \"]*", "", error["message"])
                line = {"level": error["level"], "message": message}
                # The error log counts whole seconds.
                yield {"host": host, "source": "nginx", "begin": max(at, found["begin"]), "line": line}
                break


def end_of(source: str, line: dict[str, Any]) -> float:
    """Return when a line was written, in seconds since 1970."""
    if source == "nginx":
        return float(line["ended"])
    if source == "postgres":
        # Python cannot parse the name of the time zone; the role base sets UTC on all hosts.
        moment = line["timestamp"].rpartition(" ")[0]
        return datetime.fromisoformat(f"{moment}+00:00").timestamp()
    return datetime.fromisoformat(line["time"]).timestamp()


def duration_of(source: str, line: dict[str, Any]) -> float:
    """Return the duration in a line, in seconds, 0 without one."""
    if source == "nginx":
        return float(line["duration"])
    if source == "postgres":
        found = re.search(r"duration: ([0-9.]+) ms", line.get("message", ""))
        return float(found[1]) / 1000 if found else 0.0
    return float(line.get("duration_ms", 0)) / 1000


def belongs(source: str, line: dict[str, Any], request_id: str, statements: list[dict[str, Any]]) -> bool:
    """Return whether a matching line is about the request, or about one of the slow statements."""
    if source != "postgres":
        return not statements and request_id in {line.get("request_id"), line.get("trace_id")}
    if not statements:
        return request_id in line.get("application_name", "").split()
    at = end_of(source, line)
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
    for host, source, raw in found:
        text = text_of(raw)
        try:
            line = json.loads(text)
        except ValueError:
            continue
        # A line can be in a file and in the journal, and forward_logs repeats lines after a crash.
        if not isinstance(line, dict) or (host, text) in seen:
            continue
        seen.add((host, text))
        if not belongs(source, line, request_id, statements):
            continue
        end = end_of(source, line)
        begin = end - duration_of(source, line)
        lines.append({"host": host, "source": source, "begin": begin, "line": line})
        if "backend" in line:
            slow.append({"backend": line["backend"], "begin": begin, "end": end})
    lines += nginx_errors(module, lines)
    module.exit_json(changed=False, lines=lines, statements=slow)


if __name__ == "__main__":
    main()
