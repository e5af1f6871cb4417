"""Postgres: connections, work, waits, and what grows."""

from panels import Board, choice, lines, listing, number, truth, worse_above

SCOPE = 'instance=~"$instance"'
WINDOW = "[$__rate_interval]"


def per_second(metric: str) -> str:
    """Return a rate over all databases of each server."""
    return f"sum by (instance) (rate(pg_stat_database_{metric}{{{SCOPE}}}{WINDOW}))"


BOARD = Board(
    uid="postgres",
    title="Postgres",
    text="Connections, work, waits, and what grows.",
    variables=[choice("instance", "Host", "pg_up", "instance")],
    rows={
        "Now": [
            truth(
                "Up",
                "Whether every server answers.",
                f"min(pg_up{{{SCOPE}}})",
            ),
            number(
                "Connections",
                "Share of those the server accepts, where it is highest.",
                f"max(db_server_connections{{{SCOPE}}} / db_server_max_connections{{{SCOPE}}})",
                unit="percentunit",
                steps=worse_above(0.7, 0.85),
            ),
            number(
                "Oldest transaction",
                "It keeps vacuum from removing rows.",
                f"max(db_transactions_longest_seconds{{{SCOPE}}})",
                unit="s",
                steps=worse_above(60, 900),
            ),
            number(
                "Blocked sessions",
                "They wait for another session's lock.",
                f"sum(db_transactions_blocked{{{SCOPE}}})",
                steps=worse_above(1, 10),
            ),
            number(
                "Size",
                "Of all databases.",
                f"sum(pg_database_size_bytes{{{SCOPE}}})",
                unit="bytes",
                steps=[(None, "blue")],
            ),
            number(
                "Transaction age",
                "Transactions since the oldest that is not frozen; the server stops at two billion.",
                f"max(db_server_transaction_id_age{{{SCOPE}}})",
                steps=worse_above(5e8, 1e9),
            ),
        ],
        "Work": [
            lines(
                "Transactions",
                "A second.",
                (per_second("xact_commit"), "{{instance}} committed"),
                (per_second("xact_rollback"), "{{instance}} rolled back"),
                unit="ops",
                width=8,
            ),
            lines(
                "Rows read",
                "A second, by statements.",
                (per_second("tup_fetched"), "{{instance}}"),
                unit="ops",
                width=8,
            ),
            lines(
                "Rows written",
                "A second.",
                (per_second("tup_inserted"), "{{instance}} inserted"),
                (per_second("tup_updated"), "{{instance}} updated"),
                (per_second("tup_deleted"), "{{instance}} deleted"),
                unit="ops",
                width=8,
            ),
            lines(
                "Found in memory",
                "Share of blocks that Postgres did not have to ask the kernel for.",
                (
                    f"{per_second('blks_hit')} / ({per_second('blks_hit')} + {per_second('blks_read')})",
                    "{{instance}}",
                ),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Temporary files",
                "Bytes a second: sorts and joins that work_mem does not hold.",
                (per_second("temp_bytes"), "{{instance}}"),
                unit="Bps",
                width=8,
            ),
            lines(
                "Deadlocks",
                "A second.",
                (per_second("deadlocks"), "{{instance}}"),
                unit="ops",
                width=8,
            ),
        ],
        "Connections and waits": [
            lines(
                "Connections by state",
                "Of all clients.",
                (
                    f"sum by (instance, state) (pg_stat_activity_count{{{SCOPE}}})",
                    "{{instance}} {{state}}",
                ),
                width=8,
            ),
            lines(
                "Locks",
                "Held or waited for, by mode.",
                (f"sum by (mode) (pg_locks_count{{{SCOPE}}})", "{{mode}}"),
                width=8,
            ),
            lines(
                "Longest wait for a lock",
                "Right now.",
                (f"db_transactions_longest_lock_wait_seconds{{{SCOPE}}}", "{{instance}}"),
                unit="s",
                width=8,
            ),
            lines(
                "Replication",
                "How far a standby is behind; 0 without one.",
                (
                    f"max by (instance) (db_standby_lag_seconds{{{SCOPE}}})"
                    f" or max by (instance) (db_server_replay_lag_seconds{{{SCOPE}}})",
                    "{{instance}}",
                ),
                unit="s",
                width=24,
            ),
        ],
        "What it spends its time on": [
            listing(
                "Statements",
                "Seconds of the chosen time range that each statement took, the costliest first.",
                f"topk(20, sum by (instance, text) (increase(db_statement_seconds{{{SCOPE}}}[$__range])))",
                ["instance", "text"],
                unit="s",
            ),
        ],
        "What grows": [
            lines(
                "Largest tables",
                "With their indexes.",
                (f"topk(10, db_table_size_bytes{{{SCOPE}}})", "{{instance}} {{name}}"),
                unit="bytes",
            ),
            lines(
                "Rows to vacuum",
                "Dead rows, of the ten tables with the most.",
                (f"topk(10, db_table_dead_rows{{{SCOPE}}})", "{{instance}} {{name}}"),
            ),
        ],
    },
)
