#!/usr/bin/python3
"""Find the log lines of one request on a host."""

from __future__ import annotations

import gzip
import json
import re
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: request_lines
short_description: Find the log lines of Nginx, the services and Postgres about one request
description:
  - Searches the journal, other hosts' entries in it included, and the log files of Nginx and Postgres.
  - A line of a service is about the request if it has the id in C(request_id) or C(trace_id), or, without
    such fields, anywhere. The traceback below a line of text belongs to it.
  - Nginx' error log has no ids. Its lines are found by the connection and the path of the request, and
    returned without queries.
  - Postgres logs a request's id only while the included service's C(LOG_LEVEL) is DEBUG. Its lines about
    slow statements are found by process and time, which that service logs; pass these in O(statements).
author: Fastmetal
options:
  request_id: {type: str, required: true, description: "The id of the request or of its trace."}
  hours: {type: int, default: 48, description: "How many hours to search."}
  services: {type: list, elements: str, required: true, description: "The environment's services."}
  service: {type: str, default: "", description: "Only lines about this service; empty for all."}
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
    services: [api, shop]
"""

FILES = {"nginx": "/var/log/nginx/access.log*", "postgres": "/var/log/postgresql/fastmetal.json*"}
FIELDS = "MESSAGE,SYSLOG_IDENTIFIER,_HOSTNAME,_PID,_STREAM_ID"
# An id is a word of its own, not a part of a longer one.
WORD = r"(?<![A-Za-z0-9]){}(?![A-Za-z0-9])"
# Lines below the first of a traceback, with those of groups and chains of exceptions.
BELOW = re.compile(r"\s|$|Traceback \(most recent|During handling of the above|The above exception was")
NGINX_ERROR = re.compile(
    r"(?P<time>[0-9/]+ [0-9:]+) \[(?P<level>\w+)\] [0-9]+#[0-9]+: \*(?P<connection>[0-9]+) (?P<message>.*)"
)
# The largest difference between the clocks of two hosts.
SKEW_SECONDS = 1.0


@dataclass(frozen=True)
class Entry:
    """A line of a log: who wrote it, and when as far as the journal knows."""

    host: str
    source: str
    text: str
    time: float = 0.0
    # The process and its stream in the journal, which hold the lines of a traceback together.
    writer: tuple[str, ...] = ()


def in_files(pattern: re.Pattern[bytes], oldest: float) -> Iterator[Entry]:
    """Yield the matching lines in log files, with the rotated ones."""
    for source, files in FILES.items():
        for file in Path("/").glob(files[1:]):
            if file.stat().st_mtime < oldest:
                continue
            with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
                for line in stream:
                    if pattern.search(line):
                        yield Entry(socket.gethostname(), source, text_of(line))


def text_of(line: bytes) -> str:
    """Return a log line as text; clients may send bytes that are not UTF-8."""
    return line.decode(errors="replace").rstrip()


def in_journal(module: AnsibleModule, *words: str) -> Iterator[Entry]:
    """Yield the entries in all journals on this host that match journalctl's arguments."""
    command = ["journalctl", "--quiet", "--merge", "--no-pager", "--output=json", f"--output-fields={FIELDS}"]
    code, out, err = module.run_command([*command, *words])
    # 1: no entry matched.
    if code not in {0, 1}:
        module.fail_json(msg=f"The journal cannot be read: {err.strip()}")
    for entry in map(json.loads, out.splitlines()):
        message = entry["MESSAGE"]
        # journalctl shows a message that is not UTF-8 as a list of its bytes.
        text = message.encode() if isinstance(message, str) else bytes(message or [])
        yield Entry(
            entry.get("_HOSTNAME", ""),
            source_of(entry.get("SYSLOG_IDENTIFIER", ""), module.params["services"]),
            text_of(text),
            int(entry.get("__REALTIME_TIMESTAMP", 0)) / 1e6,
            tuple(f"{key}={entry[key]}" for key in ("_HOSTNAME", "_PID", "_STREAM_ID") if key in entry),
        )


def source_of(identifier: str, services: Iterable[str]) -> str:
    """Return the service whose instance, job or command has an identifier, or the identifier itself."""
    owners = [name for name in services if identifier == name or identifier.startswith(f"{name}-")]
    return max(owners, key=len, default=identifier)


def with_traceback(lines: Iterable[str]) -> str:
    """Return the first of some lines with the traceback directly below it."""
    first, *rest = lines
    taken, indented = [first], False
    for line in rest:
        below = bool(BELOW.match(line))
        # What follows the indented lines is the exception itself.
        if not below and not indented:
            break
        taken.append(line)
        indented = below and line[:1].isspace()
    return "\n".join(taken).rstrip()


def text_lines(module: AnsibleModule, found: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    """Yield services' lines of text as result lines, each with its traceback."""
    writers: dict[tuple[str, ...], list[Entry]] = {}
    for entry in found:
        writers.setdefault(entry.writer, []).append(entry)
    for writer, entries in writers.items():
        times = [entry.time for entry in entries]
        period = (f"--since=@{int(min(times))}", f"--until=@{int(max(times)) + 3}")
        written = [(entry.time, entry.text) for entry in in_journal(module, *period, *writer)]
        for entry in entries:
            place = written.index((entry.time, entry.text)) if (entry.time, entry.text) in written else None
            below = [] if place is None else [text for _, text in written[place + 1 :]]
            line = {"message": with_traceback([entry.text, *below])}
            yield {"host": entry.host, "source": entry.source, "begin": entry.time, "line": line}


def search(module: AnsibleModule, pattern: str) -> list[str]:
    """Return journalctl's arguments for messages that match a pattern."""
    return [f"--since=-{module.params['hours']}h", f"--grep={pattern}", "--case-sensitive"]


def nginx_errors(module: AnsibleModule, lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the lines of Nginx' error log about the requests in the access lines."""
    requests = [found for found in lines if found["source"] == "nginx" and "connection" in found["line"]]
    if not requests:
        return
    connections = "|".join(sorted({str(found["line"]["connection"]) for found in requests}))
    for entry in in_journal(module, *search(module, rf"#[0-9]+: \*({connections}) ")):
        error = NGINX_ERROR.match(entry.text) if entry.source == "nginx" else None
        if not error:
            continue
        at = datetime.strptime(f"{error['time']} +0000", "%Y/%m/%d %H:%M:%S %z").astimezone(UTC).timestamp()
        for found in requests:
            known = (found["host"], str(found["line"]["connection"])) == (entry.host, error["connection"])
            # Requests share a connection over HTTP/2.
            known = known and f" {found['line']['path']}" in error["message"]
            if known and found["begin"] - SKEW_SECONDS <= at <= end_of("nginx", found["line"]) + SKEW_SECONDS:
                message = re.sub(r"\?[^ \"]*", "", error["message"])
                line = {"level": error["level"], "message": message}
                # The error log counts whole seconds.
                yield {"host": entry.host, "source": "nginx", "begin": max(at, found["begin"]), "line": line}
                break


def end_of(source: str, line: dict[str, Any], written: float = 0.0) -> float:
    """Return when a line was written, in seconds since 1970; the journal knows when about."""
    if source == "nginx":
        return float(line["ended"])
    if source == "postgres":
        # Python cannot parse the name of the time zone; the role base sets UTC on all hosts.
        moment = line["timestamp"].rpartition(" ")[0]
        return datetime.fromisoformat(f"{moment}+00:00").timestamp()
    try:
        return datetime.fromisoformat(line["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return written


def duration_of(source: str, line: dict[str, Any]) -> float:
    """Return the duration in a line, in seconds, 0 without one."""
    if source == "nginx":
        return float(line["duration"])
    if source == "postgres":
        found = re.search(r"duration: ([0-9.]+) ms", line.get("message", ""))
        return float(found[1]) / 1000 if found else 0.0
    shown = line.get("duration_ms", 0)
    return float(shown) / 1000 if isinstance(shown, int | float) else 0.0


def belongs(source: str, line: dict[str, Any], request_id: str, statements: list[dict[str, Any]]) -> bool:
    """Return whether a matching line is about the request, or about one of the slow statements."""
    if source != "postgres":
        # A line without these fields has the id in another one.
        ids = [line[key] for key in ("request_id", "trace_id") if key in line]
        return not statements and (request_id in ids or (source != "nginx" and not ids))
    if not statements:
        return request_id in line.get("application_name", "").split()
    at = end_of(source, line)
    return any(
        line.get("pid") == known["backend"]
        and known["begin"] - SKEW_SECONDS <= at <= known["end"] + SKEW_SECONDS
        for known in statements
    )


def is_of(service: str, found: dict[str, Any]) -> bool:
    """Return whether a result line is about a service; an empty name stands for all."""
    source, line = found["source"], found["line"]
    owner = {"nginx": line.get("service"), "postgres": line.get("dbname")}.get(source, source)
    return service in {"", owner}


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
            "services": {"type": "list", "elements": "str", "required": True},
            "service": {"type": "str", "default": ""},
            "statements": {"type": "list", "elements": "dict", "options": statement},
        },
        supports_check_mode=True,
    )
    request_id, statements = module.params["request_id"], module.params["statements"] or []
    backends = "|".join(str(known["backend"]) for known in statements)
    pattern = f'"pid":({backends}),' if statements else WORD.format(re.escape(request_id))
    found = [*in_journal(module, *search(module, pattern))]
    found += in_files(re.compile(pattern.encode()), time.time() - module.params["hours"] * 3600)
    lines, slow, plain, seen = [], [], [], set()
    for entry in found:
        if not re.search(pattern, entry.text):
            continue
        try:
            line = json.loads(entry.text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            if entry.source in module.params["services"] and not statements:
                plain.append(entry)
            continue
        # A line can be in a file and in the journal, and forward_logs repeats lines after a crash.
        if (entry.host, entry.source, entry.text) in seen:
            continue
        seen.add((entry.host, entry.source, entry.text))
        if not belongs(entry.source, line, request_id, statements):
            continue
        end = end_of(entry.source, line, entry.time)
        begin = end - duration_of(entry.source, line)
        lines.append({"host": entry.host, "source": entry.source, "begin": begin, "line": line})
        if "backend" in line:
            slow.append({"backend": line["backend"], "begin": begin, "end": end})
    lines += text_lines(module, plain)
    lines = [line for line in lines if is_of(module.params["service"], line)]
    lines += nginx_errors(module, lines)
    module.exit_json(changed=False, lines=lines, statements=slow)


if __name__ == "__main__":
    main()
