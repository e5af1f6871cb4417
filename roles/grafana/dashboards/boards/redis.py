"""Redis for caches and queues: hit ratio, memory, evictions, waiting clients and commands."""

from panels import Board, choice, lines, number, truth, worse_above

SCOPE = 'instance=~"$instance",server=~"$server"'
WINDOW = "[$__rate_interval]"
HITS = f"sum by (instance, server) (rate(redis_keyspace_hits_total{{{SCOPE}}}{WINDOW}))"
MISSES = f"sum by (instance, server) (rate(redis_keyspace_misses_total{{{SCOPE}}}{WINDOW}))"

BOARD = Board(
    uid="redis",
    title="Redis",
    text="Hit ratio, memory, evictions, waiting clients and commands of caches and queues.",
    variables=[
        choice("instance", "Host", "redis_up", "instance"),
        choice("server", "Server", "redis_up", "server"),
    ],
    rows={
        "Now": [
            truth(
                "Up",
                "Yes if every selected server answers.",
                f"min(redis_up{{{SCOPE}}})",
            ),
            truth(
                "Used by the services",
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
                (HITS, "{{instance}} {{server}} hits"),
                (MISSES, "{{instance}} {{server}} misses"),
                unit="ops",
                width=8,
            ),
            lines(
                "Hit ratio",
                "Share of reads that found a key.",
                (f"{HITS} / ({HITS} + {MISSES})", "{{instance}} {{server}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Commands",
                "Commands per second.",
                (f"rate(redis_commands_processed_total{{{SCOPE}}}{WINDOW})", "{{instance}} {{server}}"),
                unit="ops",
                width=8,
            ),
        ],
        "Memory": [
            lines(
                "Memory",
                "Used memory and maxmemory.",
                (f"redis_memory_used_bytes{{{SCOPE}}}", "{{instance}} {{server}} used"),
                (f"redis_memory_max_bytes{{{SCOPE}}}", "{{instance}} {{server}} maximum"),
                unit="bytes",
                width=8,
            ),
            lines(
                "Removed keys",
                "Keys per second that expired, or were evicted because memory was full.",
                (f"rate(redis_expired_keys_total{{{SCOPE}}}{WINDOW})", "{{instance}} {{server}} expired"),
                (f"rate(redis_evicted_keys_total{{{SCOPE}}}{WINDOW})", "{{instance}} {{server}} evicted"),
                unit="ops",
                width=8,
            ),
            lines(
                "Network",
                "Bytes per second.",
                (f"rate(redis_net_input_bytes_total{{{SCOPE}}}{WINDOW})", "{{instance}} {{server}} in"),
                (f"rate(redis_net_output_bytes_total{{{SCOPE}}}{WINDOW})", "{{instance}} {{server}} out"),
                unit="Bps",
                width=8,
            ),
        ],
        "Queues": [
            lines(
                "Waiting clients",
                "Clients that wait for a key, such as workers of a queue for a job.",
                (f"redis_blocked_clients{{{SCOPE}}}", "{{instance}} {{server}}"),
                width=8,
            ),
            lines(
                "Keys",
                "Keys in each database; a queue is one key, and so is each result.",
                (f"redis_db_keys{{{SCOPE}}}", "{{instance}} {{server}} {{db}}"),
                width=8,
            ),
            lines(
                "Unsaved changes",
                "Changes since the last snapshot; a cache without persistence saves none.",
                (f"redis_rdb_changes_since_last_save{{{SCOPE}}}", "{{instance}} {{server}}"),
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
