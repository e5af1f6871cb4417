"""Redis as a cache: hit ratio, memory, evictions and commands."""

from panels import Board, choice, lines, number, truth, worse_above

SCOPE = 'instance=~"$instance"'
WINDOW = "[$__rate_interval]"
HITS = f"sum by (instance) (rate(redis_keyspace_hits_total{{{SCOPE}}}{WINDOW}))"
MISSES = f"sum by (instance) (rate(redis_keyspace_misses_total{{{SCOPE}}}{WINDOW}))"

BOARD = Board(
    uid="redis",
    title="Redis",
    text="Hit ratio, memory, evictions and commands.",
    variables=[choice("instance", "Host", "redis_up", "instance")],
    rows={
        "Now": [
            truth(
                "Up",
                "Yes if every selected server answers.",
                f"min(redis_up{{{SCOPE}}})",
            ),
            truth(
                "Used by the service",
                "Yes if every worker is connected to its cache.",
                "min(cache_up)",
            ),
            number(
                "Clients",
                "Client connections.",
                f"sum(redis_connected_clients{{{SCOPE}}})",
                steps=[(None, "blue")],
            ),
            number(
                "Keys",
                "Keys in all databases.",
                f"sum(redis_db_keys{{{SCOPE}}}) or vector(0)",
                steps=[(None, "blue")],
            ),
            number(
                "Rejected",
                "Connections above maxclients in the selected time range.",
                f"sum(increase(redis_rejected_connections_total{{{SCOPE}}}[$__range]))",
                steps=worse_above(1, 10),
            ),
            number(
                "Uptime",
                "Time since the most recent start of a server.",
                f"min(redis_uptime_in_seconds{{{SCOPE}}})",
                unit="s",
                steps=[(None, "blue")],
            ),
        ],
        "Hits": [
            lines(
                "Hits and misses",
                "Reads per second.",
                (HITS, "{{instance}} hits"),
                (MISSES, "{{instance}} misses"),
                unit="ops",
                width=8,
            ),
            lines(
                "Hit ratio",
                "Share of reads that found a key.",
                (f"{HITS} / ({HITS} + {MISSES})", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Commands",
                "Commands per second.",
                (f"rate(redis_commands_processed_total{{{SCOPE}}}{WINDOW})", "{{instance}}"),
                unit="ops",
                width=8,
            ),
        ],
        "Memory": [
            lines(
                "Memory",
                "Used memory and maxmemory.",
                (f"redis_memory_used_bytes{{{SCOPE}}}", "{{instance}} used"),
                (f"redis_memory_max_bytes{{{SCOPE}}}", "{{instance}} maximum"),
                unit="bytes",
                width=8,
            ),
            lines(
                "Removed keys",
                "Keys per second that expired, or were evicted because memory was full.",
                (f"rate(redis_expired_keys_total{{{SCOPE}}}{WINDOW})", "{{instance}} expired"),
                (f"rate(redis_evicted_keys_total{{{SCOPE}}}{WINDOW})", "{{instance}} evicted"),
                unit="ops",
                width=8,
            ),
            lines(
                "Network",
                "Bytes per second.",
                (f"rate(redis_net_input_bytes_total{{{SCOPE}}}{WINDOW})", "{{instance}} in"),
                (f"rate(redis_net_output_bytes_total{{{SCOPE}}}{WINDOW})", "{{instance}} out"),
                unit="Bps",
                width=8,
            ),
        ],
        "Commands": [
            lines(
                "Time by command",
                "Share of one CPU by command.",
                (
                    f"sum by (cmd) (rate(redis_commands_duration_seconds_total{{{SCOPE}}}{WINDOW}))",
                    "{{cmd}}",
                ),
                unit="percentunit",
            ),
            lines(
                "Calls by command",
                "Calls per second by command.",
                (f"sum by (cmd) (rate(redis_commands_total{{{SCOPE}}}{WINDOW}))", "{{cmd}}"),
                unit="ops",
            ),
        ],
    },
)
