"""Hosts: use, saturation and errors of processors, memory, disks and network; units, clock, upgrades."""

from panels import Board, choice, lines, listing, number, worse_above

SCOPE = 'instance=~"$instance"'
WINDOW = "[$__rate_interval]"

BOARD = Board(
    uid="host",
    title="Hosts",
    text="Use, saturation and errors of processors, memory, disks and network.",
    variables=[choice("instance", "Host", 'up{job="node"}', "instance")],
    rows={
        "Now": [
            number(
                "Down",
                "Hosts that give no figures.",
                f'count(up{{job="node",{SCOPE}}} == 0) or vector(0)',
                steps=worse_above(1, 2),
            ),
            number(
                "Failed units",
                "On all hosts.",
                f'sum(node_systemd_unit_state{{state="failed",{SCOPE}}})',
                steps=worse_above(1, 3),
            ),
            number(
                "Security upgrades",
                "Packages that wait for one.",
                f'sum(fastmetal_upgrades_pending{{origin="security",{SCOPE}}})',
                steps=worse_above(1, 20),
            ),
            number(
                "Reboots",
                "Hosts that wait for one.",
                f"sum(fastmetal_reboot_required{{{SCOPE}}})",
                steps=worse_above(1, 5),
            ),
            number(
                "Clock",
                "The largest offset.",
                f"max(abs(node_timex_offset_seconds{{{SCOPE}}}))",
                unit="s",
                steps=worse_above(0.02, 0.05),
            ),
            number(
                "Up since",
                "Time since the last boot of a host.",
                f"time() - max(node_boot_time_seconds{{{SCOPE}}})",
                unit="s",
                steps=[(None, "blue")],
            ),
        ],
        "Processors and memory": [
            lines(
                "Processors",
                "Share that is busy.",
                (f"instance:node_cpu:utilisation5m{{{SCOPE}}}", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Load",
                "Tasks that run or want to, for each processor.",
                (f"instance:node_cpu:saturation{{{SCOPE}}}", "{{instance}}"),
                width=8,
            ),
            lines(
                "Processors by mode",
                "Processors in use for what, on all chosen hosts.",
                (
                    f'sum by (mode) (rate(node_cpu_seconds_total{{mode!="idle",{SCOPE}}}{WINDOW}))',
                    "{{mode}}",
                ),
                width=8,
                stacked=True,
            ),
            lines(
                "Memory",
                "Share that is in use.",
                (f"instance:node_memory:utilisation{{{SCOPE}}}", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Waits for memory",
                "Pages a second that had to come from disk.",
                (f"instance:node_memory:saturation5m{{{SCOPE}}}", "{{instance}}"),
                unit="ops",
                width=8,
            ),
            lines(
                "Killed for want of memory",
                "Processes a second.",
                (f"rate(node_vmstat_oom_kill{{{SCOPE}}}{WINDOW})", "{{instance}}"),
                unit="ops",
                width=8,
            ),
        ],
        "Disks": [
            lines(
                "File systems",
                "Share that is taken.",
                (
                    f"instance_mountpoint:node_filesystem:utilisation{{{SCOPE}}}",
                    "{{instance}} {{mountpoint}}",
                ),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Use",
                "Share of the time in which a disk works.",
                (f"instance_device:node_disk:utilisation5m{{{SCOPE}}}", "{{instance}} {{device}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Queue",
                "Requests that wait for a disk, on average.",
                (f"instance_device:node_disk:saturation5m{{{SCOPE}}}", "{{instance}} {{device}}"),
                width=8,
            ),
        ],
        "Network": [
            lines(
                "Received",
                "Bytes a second.",
                (f"instance:node_network:receive_bytes_rate5m{{{SCOPE}}}", "{{instance}}"),
                unit="Bps",
                width=8,
            ),
            lines(
                "Sent",
                "Bytes a second.",
                (f"instance:node_network:transmit_bytes_rate5m{{{SCOPE}}}", "{{instance}}"),
                unit="Bps",
                width=8,
            ),
            lines(
                "Errors",
                "Packets a second that were broken or dropped.",
                (f"instance:node_network:errors_rate5m{{{SCOPE}}}", "{{instance}}"),
                unit="ops",
                width=8,
            ),
        ],
        "What waits": [
            listing(
                "Upgrades",
                "Packages with a newer version.",
                f"fastmetal_upgrades_pending{{{SCOPE}}}",
                ["instance", "origin"],
                width=12,
            ),
            listing(
                "Systems",
                "What each host is.",
                f"node_uname_info{{{SCOPE}}}",
                ["instance", "release", "machine"],
                width=12,
            ),
        ],
    },
)
