"""Show the results of host_status: a table with the problems below it, or one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.fastmetal.metal.plugins.module_utils.marks import MARKS

Status = Mapping[str, Any]

DISK_PERCENT = 90
# Backups are daily and may take some hours; finished WAL is archived within seconds.
BACKUP_SECONDS, BEHIND_SECONDS = 30 * 3600, 300
HEADER = (
    *("host", "service", "live release", "commit", "since", "schema", "workers"),
    *("last deploy", "certificates", "backup", "disk", "units"),
)


def moment(value: float | str) -> str:
    """Return a time in the time zone of the control node."""
    when = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC)
    return when.astimezone().strftime("%Y-%m-%d %H:%M")


def rows(host: str, status: Status) -> Iterator[tuple[str, ...]]:
    """Yield a host's rows of the table, one for each service; an unreachable host has two cells."""
    if reason := status.get("unreachable"):
        yield (host, f"unreachable: {reason}")
        return
    disks, units = status["disks"], status["units"].values()
    worst = max(disks, key=disks.__getitem__)
    # Of the host, so in its first row only.
    common: tuple[str, ...] = (
        certificate_cell(status),
        backup_cell(status["backups"]),
        f"{disks[worst]} % of {worst}",
        f"{sum(state == 'active' for state in units)}/{len(units)} active",
    )
    for name, service in status["services"].items() or [("-", None)]:
        yield (host, name, *service_cells(service), *common)
        common = ()


def certificate_cell(status: Status) -> str:
    """Return the days that a host's certificates have left, and when an edge renews its next one."""
    days = status["certificates"].values()
    renewals = [entry["next"] for entry in status["renewals"].values()]
    return ", ".join(
        [
            f"{min(days)} days" if days else "-",
            *([f"renewal {moment(min(renewals))}"] if renewals else []),
        ]
    )


def backup_cell(backups: Status) -> str:
    """Return the times of the newest backup and the last drill, and whether they are on the data's disk."""
    # A backup host has those of its database host.
    if not backups or "same_disk" not in backups:
        return "-"
    last = [entry["last"] for entry in backups["backups"].values()]
    drill = backups["drill"]
    return ", ".join(
        [
            moment(min(last)) if last else "none",
            *([f"drill {drill['result']} {moment(drill['begun'])}"] if drill else []),
            *(["same disk"] if backups.get("same_disk") else []),
        ]
    )


def service_cells(service: Status | None) -> tuple[str, ...]:
    """Return the cells of a service on a host, or those of a host without services."""
    if service is None:
        return ("-",) * 6
    release, deploy, workers = service["release"] or {}, service["last_deploy"] or {}, service["workers"]
    return (
        release.get("id", "-"),
        (release.get("commit") or "-")[:8],
        moment(release["since"]) if release else "-",
        service["revision"] or "-",
        "-" if workers is None else str(workers),
        f"{deploy['action']} {deploy['result']} by {deploy['by']}, {moment(deploy['time'])}"
        if deploy
        else "-",
    )


def table(fleet: Mapping[str, Status]) -> list[str]:
    """Return the lines of the table."""
    lines = [HEADER, *(cells for host, status in fleet.items() for cells in rows(host, status))]
    whole = [cells for cells in lines if len(cells) > 2]
    widths = [max(len(cells[index]) for cells in whole if index < len(cells)) for index in range(len(HEADER))]
    widths[0] = max(len(cells[0]) for cells in lines)
    return ["  ".join(map(str.ljust, cells, widths[: len(cells)])).rstrip() for cells in lines]


def host_problems(host: str, status: Status, services: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each problem of a host, given the environment's services."""
    if reason := status.get("unreachable"):
        yield f"{host} cannot be reached: {reason}."
        return
    for unit, state in status["units"].items():
        if state != "active":
            advice = "run site.yml" if state == "missing" else f"look at `journalctl -u {unit}` there"
            yield f"{host}: {unit} is {state}: {advice}."
    for name in status["expiring"]:
        days = status["certificates"][name]
        yield f"{host}: the certificate {name!r} expires in {days} days: run site.yml, which renews it."
    for name, entry in status["renewals"].items():
        if entry["failed"]:
            yield (
                f"{host}: the certificate {name!r} was not renewed in {entry['failed']} attempts"
                f" ({entry['error']}): fix the cause, then run `fastmetal-acme issue` there."
            )
    yield from backup_problems(host, status["backups"])
    for path, percent in status["disks"].items():
        if percent >= DISK_PERCENT:
            yield f"{host}: the disk of {path} is {percent} % full."
    for name, service in status["services"].items():
        yield from service_problems(host, name, service)
    yield from leftover_problems(host, status["leftovers"], services)
    if status["alerts"] is None:
        yield f"{host}: Alertmanager does not answer: look at `journalctl -u prometheus-alertmanager` there."
    for name, entry in status["maintenance"].items():
        since, message = moment(entry["since"]), entry["message"]
        yield (
            f"{host} keeps clients of {name} out since {since} ({message}):"
            f" maintenance.yml -e maintenance=off -e service={name}."
        )


def backup_problems(host: str, backups: Status) -> Iterator[str]:
    """Yield a sentence for each problem of a host's backups."""
    for fault in backups.get("faults", ()):
        yield f"{host}: the backups have a fault: {fault}: docs/runbooks/backups.md."
    for repository, entry in backups.get("backups", {}).items():
        if backups["time"] - entry["last"] > BACKUP_SECONDS:
            yield (
                f"{host}: the newest backup in repository {repository} is of {moment(entry['last'])}:"
                " look at `journalctl -u 'fastmetal-backup@*'` there."
            )
    if backups.get("behind_seconds", 0) > BEHIND_SECONDS:
        yield (
            f"{host}: {backups['behind_bytes'] >> 20} MiB of WAL are in no repository:"
            " look at the log of Postgres there."
        )
    if (drill := backups.get("drill")) and drill["result"] != "ok":
        yield f"{host}: the restore drill of {moment(drill['begun'])} failed: {drill['reason']}."
    for folder in backups.get("kept", ()):
        yield (
            f"{host}: a restore has kept {folder}: once it is not needed, run `fastmetal-backups forget`"
            " there."
        )


def service_problems(host: str, name: str, service: Status) -> Iterator[str]:
    """Yield a sentence for each problem of a service on a host."""
    yield from history_problems(host, name, service)
    if (release := service["release"]) and not service["workers"]:
        yield f"{host}: release {release['id']} of {name} is current, but it does not run."
    if release and release["canary"]:
        yield (
            f"{host}: release {release['id']} of {name} is a canary:"
            " it serves, and rolls back unless it is promoted."
        )
    if lock := service["lock"]:
        yield f"{host}: {name} is locked by {lock['by']} from {lock['from']} since {moment(lock['time'])}."


def history_problems(host: str, name: str, service: Status) -> Iterator[str]:
    """Yield a sentence if the last change failed, and nothing has mended it."""
    last = service["last_deploy"]
    if not last or last["result"] == "ok":
        return
    when = datetime.fromisoformat(last["time"]).timestamp()
    # A run that wrote the configuration after the failure would have added its own failure.
    if last["action"] == "configure" and (service["configured"] or 0) > when:
        return
    reason = f" ({last['reason']})" if last.get("reason") else ""
    result = "was rolled back" if last["result"] == "rolled_back" else last["result"]
    yield (
        f"{host}: the last {last['action']} of {name}, {moment(when)}, {result}{reason}: fix the cause, then"
        f" repeat it or run restart.yml -e service={name}."
    )


def leftover_problems(
    host: str, leftovers: Mapping[str, list[str]], services: Collection[str]
) -> Iterator[str]:
    """Yield a sentence for each role that the host no longer has; "app NAME" is a service of that name."""
    for key, units in leftovers.items():
        role, _, service = key.partition(" ")
        if service and service not in services:
            yield (
                f"{host}: {service} is left from before and is not in services: remove it and its data with"
                f" remove_service.yml -e service={service}."
            )
            continue
        commands = [f"systemctl disable --now {' '.join(units)}"] if units else []
        commands += [] if service else [f"rm /{MARKS}/{role}.json"]
        what = f"the service {service}" if service else f"the role {role}"
        why = "runs elsewhere now" if service else "belongs to no group"
        steps = " and ".join(f"`{command}`" for command in commands)
        yield f"{host}: {what} is left from before and {why}: remove it with {steps} there."


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
    names = {name: None for status in fleet.values() for name in status.get("services", ())}
    for name in names:
        serving = {
            host: (service, status["groups"])
            for host, status in fleet.items()
            if (service := status.get("services", {}).get(name)) and service["release"]
        }
        releases = {host: service["release"]["id"] for host, (service, _) in serving.items()}
        if len(set(releases.values())) > 1:
            shown = ", ".join(f"{host} has {release}" for host, release in releases.items())
            yield f"The live release of {name} differs: {shown}: deploy again."
        alike: dict[tuple[str, ...], dict[str, str]] = {}
        for host, (service, groups) in serving.items():
            # The settings of a host depend on whether it also runs the database or the cache.
            own = tuple(sorted({"postgres", "redis"} & set(groups)))
            alike.setdefault(own, {})[host] = service["configuration"]
        for hosts in alike.values():
            if len(set(hosts.values())) > 1:
                yield f"The configuration of {name} differs between {', '.join(hosts)}: run site.yml."


class ActionModule(ActionBase):
    """Action `show_status`: results ({host: what host_status returned}), services, format, strict."""

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
        problems = [
            sentence
            for host, status in fleet.items()
            for sentence in host_problems(host, status, arguments["services"])
        ]
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
