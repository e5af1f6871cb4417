"""Hosts: utilization, saturation and errors of CPU, memory, disks and network; units, clock, upgrades."""

from panels import Board, choice, lines, listing, number, worse_above

SCOPE = 'instance=~"$instance"'
WINDOW = "[$__rate_interval]"

BOARD = Board(
    uid="host",
    title="Hosts",
    text="Utilization, saturation and errors of CPU, memory, disks and network.",
    variables=[choice("instance", "Host", 'up{job="node"}', "instance")],
    rows={
        "Now": [
            number(
                "Down",
                "Hosts whose node exporter does not answer.",
                f'count(up{{job="node",{SCOPE}}} == 0) or vector(0)',
                steps=worse_above(1, 2),
            ),
            number(
                "Failed units",
                "Failed systemd units on the selected hosts.",
                f'sum(node_systemd_unit_state{{state="failed",{SCOPE}}})',
                steps=worse_above(1, 3),
            ),
            number(
                "Security upgrades",
                "Packages with a pending security upgrade.",
                f'sum(fastmetal_upgrades_pending{{origin="security",{SCOPE}}})',
                steps=worse_above(1, 20),
            ),
            number(
                "Reboots",
                "Hosts that need a reboot after an upgrade.",
                f"sum(fastmetal_reboot_required{{{SCOPE}}})",
                steps=worse_above(1, 5),
            ),
            number(
                "Clock",
                "Largest offset from the time server.",
                f"max(abs(node_timex_offset_seconds{{{SCOPE}}}))",
                unit="s",
                steps=worse_above(0.02, 0.05),
            ),
            number(
                "Uptime",
                "Time since the most recent boot of a host.",
                f"time() - max(node_boot_time_seconds{{{SCOPE}}})",
                unit="s",
                steps=[(None, "blue")],
            ),
        ],
        "CPU and memory": [
            lines(
                "CPU",
                "Share of the CPUs that is busy.",
                (f"instance:node_cpu:utilisation5m{{{SCOPE}}}", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Load",
                "Running and waiting tasks per CPU.",
                (f"instance:node_cpu:saturation{{{SCOPE}}}", "{{instance}}"),
                width=8,
            ),
            lines(
                "CPU by mode",
                "CPUs in use by mode, on all selected hosts.",
                (
                    f'sum by (mode) (rate(node_cpu_seconds_total{{mode!="idle",{SCOPE}}}{WINDOW}))',
                    "{{mode}}",
                ),
                width=8,
                stacked=True,
            ),
            lines(
                "Memory",
                "Share of the memory that is in use.",
                (f"instance:node_memory:utilisation{{{SCOPE}}}", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Major page faults",
                "Pages per second that were read from disk.",
                (f"instance:node_memory:saturation5m{{{SCOPE}}}", "{{instance}}"),
                unit="ops",
                width=8,
            ),
            lines(
                "Out-of-memory kills",
                "Processes per second that the kernel killed.",
                (f"rate(node_vmstat_oom_kill{{{SCOPE}}}{WINDOW})", "{{instance}}"),
                unit="ops",
                width=8,
            ),
        ],
        "Disks": [
            lines(
                "File systems",
                "Used share of each file system.",
                (
                    f"instance_mountpoint:node_filesystem:utilisation{{{SCOPE}}}",
                    "{{instance}} {{mountpoint}}",
                ),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Disk utilization",
                "Share of the time in which a disk is busy.",
                (f"instance_device:node_disk:utilisation5m{{{SCOPE}}}", "{{instance}} {{device}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Disk queue",
                "Average number of requests that wait for a disk.",
                (f"instance_device:node_disk:saturation5m{{{SCOPE}}}", "{{instance}} {{device}}"),
                width=8,
            ),
        ],
        "Network": [
            lines(
                "Received",
                "Bytes per second.",
                (f"instance:node_network:receive_bytes_rate5m{{{SCOPE}}}", "{{instance}}"),
                unit="Bps",
                width=8,
            ),
            lines(
                "Sent",
                "Bytes per second.",
                (f"instance:node_network:transmit_bytes_rate5m{{{SCOPE}}}", "{{instance}}"),
                unit="Bps",
                width=8,
            ),
            lines(
                "Network errors",
                "Packets per second with errors or dropped.",
                (f"instance:node_network:errors_rate5m{{{SCOPE}}}", "{{instance}}"),
                unit="ops",
                width=8,
            ),
        ],
        "Upgrades and systems": [
            listing(
                "Upgrades",
                "Packages with a newer version, by origin.",
                f"fastmetal_upgrades_pending{{{SCOPE}}}",
                ["instance", "origin"],
                width=12,
            ),
            listing(
                "Systems",
                "Kernel release and architecture of each host.",
                f"node_uname_info{{{SCOPE}}}",
                ["instance", "release", "machine"],
                width=12,
            ),
        ],
    },
)
