"""Show the results of host_status: a table with the problems below it, or one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.fastmetal.metal.plugins.module_utils.marks import MARKS

Status = Mapping[str, Any]

CERTIFICATE_DAYS = 14  # site.yml renews a certificate when a third of its lifetime is left
DISK_PERCENT = 90
HEADER = (
    *("host", "live release", "commit", "since", "schema", "workers"),
    *("last deploy", "certificates", "disk", "units"),
)


def moment(value: float | str) -> str:
    """Return a time in the time zone of the control node."""
    when = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC)
    return when.astimezone().strftime("%Y-%m-%d %H:%M")


def row(host: str, status: Status) -> tuple[str, ...]:
    """Return a host's row of the table; an unreachable host has two cells."""
    if reason := status.get("unreachable"):
        return (host, f"unreachable: {reason}")
    release, deploy = status["release"] or {}, status["last_deploy"] or {}
    days, disks, units = status["certificates"].values(), status["disks"], status["units"].values()
    worst = max(disks, key=disks.__getitem__)
    return (
        host,
        release.get("id", "-"),
        (release.get("commit") or "-")[:8],
        moment(release["since"]) if release else "-",
        status["revision"] or "-",
        "-" if status["workers"] is None else str(status["workers"]),
        f"{deploy['action']} {deploy['result']} by {deploy['by']}, {moment(deploy['time'])}"
        if deploy
        else "-",
        f"{min(days)} days" if days else "-",
        f"{disks[worst]} % of {worst}",
        f"{sum(state == 'active' for state in units)}/{len(units)} active",
    )


def table(fleet: Mapping[str, Status]) -> list[str]:
    """Return the lines of the table."""
    rows = [HEADER, *(row(host, status) for host, status in fleet.items())]
    whole = [cells for cells in rows if len(cells) == len(HEADER)]
    widths = [max(len(cells[index]) for cells in whole) for index in range(len(HEADER))]
    widths[0] = max(len(cells[0]) for cells in rows)
    return ["  ".join(map(str.ljust, cells, widths[: len(cells)])).rstrip() for cells in rows]


def host_problems(host: str, status: Status) -> Iterator[str]:
    """Yield a sentence for each problem of a host."""
    if reason := status.get("unreachable"):
        yield f"{host} cannot be reached: {reason}."
        return
    for unit, state in status["units"].items():
        if state != "active":
            advice = "run site.yml" if state == "missing" else f"look at `journalctl -u {unit}` there"
            yield f"{host}: {unit} is {state}: {advice}."
    for name, days in status["certificates"].items():
        if days < CERTIFICATE_DAYS:
            yield f"{host}: the certificate {name!r} expires in {days} days: run site.yml, which renews it."
    for path, percent in status["disks"].items():
        if percent >= DISK_PERCENT:
            yield f"{host}: the disk of {path} is {percent} % full."
    yield from history_problems(host, status)
    yield from leftover_problems(host, status["leftovers"])
    if status["alerts"] is None:
        yield f"{host}: Alertmanager does not answer: look at `journalctl -u prometheus-alertmanager` there."
    if (release := status["release"]) and not status["workers"]:
        yield f"{host}: release {release['id']} is current, but it does not run."
    if release and release["canary"]:
        yield f"{host}: release {release['id']} is a canary: it serves, and rolls back unless it is promoted."
    if lock := status["lock"]:
        yield f"{host} is locked by {lock['by']} from {lock['from']} since {moment(lock['time'])}."
    if status["maintenance"]:
        since, message = moment(status["maintenance"]["since"]), status["maintenance"]["message"]
        yield f"{host} keeps clients out since {since} ({message}): maintenance.yml -e maintenance=off."


def history_problems(host: str, status: Status) -> Iterator[str]:
    """Yield a sentence if the last change failed, and nothing has mended it."""
    last = status["last_deploy"]
    if not last or last["result"] == "ok":
        return
    when = datetime.fromisoformat(last["time"]).timestamp()
    # A run that wrote the configuration after the failure would have added its own failure.
    if last["action"] == "configure" and (status["configured"] or 0) > when:
        return
    reason = f" ({last['reason']})" if last.get("reason") else ""
    result = "was rolled back" if last["result"] == "rolled_back" else last["result"]
    yield (
        f"{host}: the last {last['action']}, {moment(when)}, {result}{reason}: mend the cause, then repeat it"
        " or run restart.yml."
    )


def leftover_problems(host: str, leftovers: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield a sentence for each role that the host no longer has; "app NAME" is a service of that name."""
    for name, units in leftovers.items():
        role, _, service = name.partition(" ")
        commands = [f"systemctl disable --now {' '.join(units)}"] if units else []
        commands += [] if service else [f"rm /{MARKS}/{role}.json"]
        what = f"the service {service}" if service else f"the role {role}"
        steps = " and ".join(f"`{command}`" for command in commands)
        yield f"{host}: {what} is left from before and belongs to no group: remove it with {steps} there."


def alert_problems(fleet: Mapping[str, Status]) -> Iterator[str]:
    """Yield a sentence for each alert that fires; several monitoring hosts may report the same one."""
    alerts = {
        (alert["name"], alert["instance"], alert["summary"]): alert["since"]
        for status in fleet.values()
        for alert in status.get("alerts") or ()
    }
    for (name, instance, summary), since in sorted(alerts.items()):
        yield f"{instance or 'The environment'}: alert {name} since {moment(since)}: {summary.rstrip('.')}."


def drift(fleet: Mapping[str, Status]) -> Iterator[str]:
    """Yield a sentence for each difference between hosts that must be alike."""
    serving = {host: status for host, status in fleet.items() if status.get("release")}
    releases = {host: status["release"]["id"] for host, status in serving.items()}
    if len(set(releases.values())) > 1:
        shown = ", ".join(f"{host} has {release}" for host, release in releases.items())
        yield f"The live release differs: {shown}: deploy again."
    alike: dict[tuple[str, ...], dict[str, str]] = {}
    for host, status in serving.items():
        # The settings of a host depend on whether it also runs the database or the cache.
        own = tuple(sorted({"postgres", "redis"} & set(status["groups"])))
        alike.setdefault(own, {})[host] = status["configuration"]
    for hosts in alike.values():
        if len(set(hosts.values())) > 1:
            yield f"The service's configuration differs between {', '.join(hosts)}: run site.yml."


class ActionModule(ActionBase):
    """Action `show_status`: results ({host: what host_status returned}), format, strict."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Print the state of all hosts; with `strict` fail if there is a problem."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        fleet: dict[str, Status] = {}
        for host, returned in arguments["results"].items():
            if returned.get("unreachable") or returned.get("failed"):
                lines = returned["msg"].strip().splitlines()
                found = {"unreachable": lines[-1].rpartition("over ssh: ")[2].rstrip(".")}
            else:
                found = returned["status"]
            fleet[host] = {**found, "groups": task_vars["hostvars"][host]["group_names"]}
        problems = [sentence for host, status in fleet.items() for sentence in host_problems(host, status)]
        problems += [*drift(fleet), *alert_problems(fleet)]
        if arguments["format"] == "json":
            self._display.display(json.dumps({"hosts": fleet, "problems": problems}))
        else:
            self._display.display("\n".join(["", *table(fleet), ""]))
            for sentence in problems:
                self._display.display(sentence, color="red")
            if not problems:
                self._display.display("Nothing is wrong.", color="green")
        if problems and arguments["strict"]:
            result.update(failed=True, msg="\n".join(problems))
        return result
