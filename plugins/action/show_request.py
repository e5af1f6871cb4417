"""Show the log lines of one request on all hosts, in the order of their start."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ansible.plugins.action import ActionBase

# Fields that the table shows in columns of their own, or that are the same in all lines.
SHOWN = {"time", "level", "logger", "message", "request_id", "trace_id", "exc_info"}


def sentence(source: str, line: dict[str, Any]) -> str:
    """Return a line as text for the operator."""
    if source == "nginx" and "status" in line:
        seconds, upstream = line["duration"], line["upstream"] or "itself"
        answer = f"{line['method']} {line['path']} {line['status']} in {seconds * 1000:.0f} ms"
        via = f"by {upstream} ({line['upstream_status'] or '-'} in {line['upstream_duration'] or '-'} s)"
        return f"{answer} for {line['client']}, {via}" + (f", cache {line['cache']}" if line["cache"] else "")
    if source == "postgres":
        return f"{line['error_severity']} {line['message']} [{line.get('dbname', '-')}]"
    if line.get("logger") == "app.access":
        answer = f"{line['method']} {line['path']} {line['status']} in {line['duration_ms']:.0f} ms"
        return answer + (f" for {line['user']}" if line.get("user") else "")
    rest = (f"{key}={value}" for key, value in line.items() if key not in SHOWN)
    words = " ".join([*(str(line[key]) for key in ("level", "message") if key in line), *rest])
    return "\n".join([words, *filter(None, [line.get("exc_info")])])


class ActionModule(ActionBase):
    """Action `show_request`: request_id, service, hours, results ({host: what request_lines returned})."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Print the lines; fail if there is none."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        results = arguments["results"]
        of = f" of {arguments['service']}" if arguments["service"] else ""
        unreachable = sorted({host for host, returned in results if returned.get("unreachable")})
        found = {
            (entry["begin"], entry["host"], entry["source"], sentence(entry["source"], entry["line"]))
            for _, returned in results
            for entry in returned.get("lines", [])
        }
        rows = [
            (datetime.fromtimestamp(begin, UTC).strftime("%H:%M:%S.%f")[:-3], host, source, text)
            for begin, host, source, text in sorted(found)
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
        if rows:
            day = datetime.fromtimestamp(min(found)[0], UTC).date()
            self._display.display(
                f"\nRequest {arguments['request_id']}, {day} (UTC), in the order of start:\n"
            )
        for *cells, text in rows:
            self._display.display("  ".join([*map(str.ljust, cells, widths), text]))
        if unreachable:
            self._display.display(f"Unreachable, not searched: {', '.join(unreachable)}.", color="red")
        if not rows:
            result.update(
                failed=True,
                msg=f"No line of the last {arguments['hours']} hours is about the request "
                f"{arguments['request_id']}{of}: check the id, or look further back with -e hours=<number>.",
            )
        return result
