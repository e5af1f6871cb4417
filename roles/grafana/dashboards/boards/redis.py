"""Redis as a cache: does it help, and is it full or thrashing."""

from panels import Board, choice, lines, number, truth, worse_above

SCOPE = 'instance=~"$instance"'
WINDOW = "[$__rate_interval]"
HITS = f"sum by (instance) (rate(redis_keyspace_hits_total{{{SCOPE}}}{WINDOW}))"
MISSES = f"sum by (instance) (rate(redis_keyspace_misses_total{{{SCOPE}}}{WINDOW}))"

BOARD = Board(
    uid="redis",
    title="Redis",
    text="Does the cache help, and is it full or thrashing?",
    variables=[choice("instance", "Host", "redis_up", "instance")],
    rows={
        "Now": [
            truth(
                "Up",
                "Whether every server answers.",
                f"min(redis_up{{{SCOPE}}})",
            ),
            truth(
                "Used by the service",
                "Whether every worker uses its cache.",
                "min(cache_up)",
            ),
            number(
                "Clients",
                "Connections.",
                f"sum(redis_connected_clients{{{SCOPE}}})",
                steps=[(None, "blue")],
            ),
            number(
                "Keys",
                "In all databases.",
                f"sum(redis_db_keys{{{SCOPE}}}) or vector(0)",
                steps=[(None, "blue")],
            ),
            number(
                "Rejected",
                "Connections refused for want of room, in the chosen time range.",
                f"sum(increase(redis_rejected_connections_total{{{SCOPE}}}[$__range]))",
                steps=worse_above(1, 10),
            ),
            number(
                "Up since",
                "Time since its last start.",
                f"min(redis_uptime_in_seconds{{{SCOPE}}})",
                unit="s",
                steps=[(None, "blue")],
            ),
        ],
        "Is it any use": [
            lines(
                "Hits and misses",
                "Reads a second.",
                (HITS, "{{instance}} hits"),
                (MISSES, "{{instance}} misses"),
                unit="ops",
                width=8,
            ),
            lines(
                "Hit ratio",
                "Share of reads that found something.",
                (f"{HITS} / ({HITS} + {MISSES})", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Commands",
                "A second.",
                (f"rate(redis_commands_processed_total{{{SCOPE}}}{WINDOW})", "{{instance}}"),
                unit="ops",
                width=8,
            ),
        ],
        "Memory": [
            lines(
                "Memory",
                "In use, and at most.",
                (f"redis_memory_used_bytes{{{SCOPE}}}", "{{instance}} used"),
                (f"redis_memory_max_bytes{{{SCOPE}}}", "{{instance}} at most"),
                unit="bytes",
                width=8,
            ),
            lines(
                "Keys that went",
                "A second: expired by their age, evicted for want of room.",
                (f"rate(redis_expired_keys_total{{{SCOPE}}}{WINDOW})", "{{instance}} expired"),
                (f"rate(redis_evicted_keys_total{{{SCOPE}}}{WINDOW})", "{{instance}} evicted"),
                unit="ops",
                width=8,
            ),
            lines(
                "Network",
                "Bytes a second.",
                (f"rate(redis_net_input_bytes_total{{{SCOPE}}}{WINDOW})", "{{instance}} in"),
                (f"rate(redis_net_output_bytes_total{{{SCOPE}}}{WINDOW})", "{{instance}} out"),
                unit="Bps",
                width=8,
            ),
        ],
        "What it spends its time on": [
            lines(
                "Time by command",
                "Share of a processor.",
                (
                    f"sum by (cmd) (rate(redis_commands_duration_seconds_total{{{SCOPE}}}{WINDOW}))",
                    "{{cmd}}",
                ),
                unit="percentunit",
            ),
            lines(
                "Calls by command",
                "A second.",
                (f"sum by (cmd) (rate(redis_commands_total{{{SCOPE}}}{WINDOW}))", "{{cmd}}"),
                unit="ops",
            ),
        ],
    },
)
