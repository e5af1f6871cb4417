"""Postgres: connections, throughput, locks, statements, backups and growth."""

from typing import Any

from panels import Board, choice, lines, listing, number, truth, worse_above

SCOPE = 'instance=~"$instance"'
DATABASE = f'{SCOPE},datname=~"$datname"'
WINDOW = "[$__rate_interval]"


def per_second(metric: str) -> str:
    """Return the rate of a counter of pg_stat_database, summed over the chosen databases of each server."""
    return f"sum by (instance) (rate(pg_stat_database_{metric}{{{DATABASE}}}{WINDOW}))"


def backup_numbers() -> list[Any]:
    """Return the figures of the backups of all hosts: those of a database host may be on the backup host."""
    return [
        number(
            "Newest backup",
            "Its age, of the repository with the oldest one.",
            "max(time() - fastmetal_backup_timestamp_seconds)",
            unit="s",
            steps=worse_above(93600, 108000),
        ),
        number(
            "Archive behind",
            "Age of the oldest finished WAL that is in no repository.",
            "max(fastmetal_backup_archive_behind_seconds)",
            unit="s",
            steps=worse_above(120, 300),
        ),
        number(
            "Without a drill",
            "Time since the last restore drill, or since the oldest backup if there was none.",
            "max(time() - (fastmetal_restore_drill_timestamp_seconds or on (instance)"
            " min by (instance) (fastmetal_backup_oldest_timestamp_seconds)))",
            unit="s",
            steps=worse_above(604800, 691200),
        ),
    ]


BOARD = Board(
    uid="postgres",
    title="Postgres",
    text="Connections, throughput, locks, statements, backups and growth.",
    variables=[
        choice("instance", "Host", "pg_up", "instance"),
        choice("datname", "Database", "pg_database_size_bytes", "datname"),
    ],
    rows={
        "Now": [
            truth(
                "Up",
                "Yes if every selected server answers.",
                f"min(pg_up{{{SCOPE}}})",
            ),
            number(
                "Connections",
                "Client connections as a share of max_connections, on the server with the highest share.",
                f"max(db_server_connections{{{SCOPE}}} / db_server_max_connections{{{SCOPE}}})",
                unit="percentunit",
                steps=worse_above(0.7, 0.85),
            ),
            number(
                "Oldest transaction",
                "Its age; an open transaction keeps vacuum from removing dead rows.",
                f"max(db_transactions_longest_seconds{{{SCOPE}}})",
                unit="s",
                steps=worse_above(60, 900),
            ),
            number(
                "Blocked sessions",
                "Sessions that wait for a lock of another session.",
                f"sum(db_transactions_blocked{{{SCOPE}}})",
                steps=worse_above(1, 10),
            ),
            number(
                "Size",
                "Size of the selected databases.",
                f"sum(pg_database_size_bytes{{{DATABASE}}})",
                unit="bytes",
                steps=[(None, "blue")],
            ),
            number(
                "Transaction ID age",
                "Age of the oldest unfrozen transaction ID in transactions; the server stops at two billion.",
                f"max(db_server_transaction_id_age{{{SCOPE}}})",
                steps=worse_above(5e8, 1e9),
            ),
        ],
        "Throughput": [
            lines(
                "Transactions",
                "Transactions per second.",
                (per_second("xact_commit"), "{{instance}} committed"),
                (per_second("xact_rollback"), "{{instance}} rolled back"),
                unit="ops",
                width=8,
            ),
            lines(
                "Rows read",
                "Rows per second that statements fetched.",
                (per_second("tup_fetched"), "{{instance}}"),
                unit="ops",
                width=8,
            ),
            lines(
                "Rows written",
                "Rows per second.",
                (per_second("tup_inserted"), "{{instance}} inserted"),
                (per_second("tup_updated"), "{{instance}} updated"),
                (per_second("tup_deleted"), "{{instance}} deleted"),
                unit="ops",
                width=8,
            ),
            lines(
                "Buffer hit ratio",
                "Share of blocks that were found in shared_buffers.",
                (
                    f"{per_second('blks_hit')} / ({per_second('blks_hit')} + {per_second('blks_read')})",
                    "{{instance}}",
                ),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Temporary files",
                "Bytes per second of sorts and joins that exceed work_mem.",
                (per_second("temp_bytes"), "{{instance}}"),
                unit="Bps",
                width=8,
            ),
            lines(
                "Deadlocks",
                "Deadlocks per second.",
                (per_second("deadlocks"), "{{instance}}"),
                unit="ops",
                width=8,
            ),
        ],
        "Connections and locks": [
            lines(
                "Connections by state",
                "Client connections by state.",
                (
                    f"sum by (instance, state) (pg_stat_activity_count{{{SCOPE}}})",
                    "{{instance}} {{state}}",
                ),
                width=8,
            ),
            lines(
                "Locks",
                "Held and awaited locks by mode.",
                (f"sum by (mode) (pg_locks_count{{{SCOPE}}})", "{{mode}}"),
                width=8,
            ),
            lines(
                "Longest lock wait",
                "The longest current wait for a lock.",
                (f"db_transactions_longest_lock_wait_seconds{{{SCOPE}}}", "{{instance}}"),
                unit="s",
                width=8,
            ),
            lines(
                "Replication lag",
                "Time by which the standbys are behind; 0 without a standby.",
                (
                    f"max by (instance) (db_standby_lag_seconds{{{SCOPE}}})"
                    f" or max by (instance) (db_server_replay_lag_seconds{{{SCOPE}}})",
                    "{{instance}}",
                ),
                unit="s",
                width=24,
            ),
        ],
        "Statements": [
            listing(
                "Statements",
                "Execution time of each statement in the selected time range, the most expensive first.",
                "topk(20, sum by (instance, datname, text)"
                f" (increase(db_statement_seconds{{{DATABASE}}}[$__range])))",
                ["instance", "datname", "text"],
                unit="s",
            ),
        ],
        "Backups": [
            *backup_numbers(),
            lines(
                "Free space of repositories",
                "Of their file systems.",
                (
                    "fastmetal_backup_repository_free_bytes",
                    "{{instance}} repository {{repository}}",
                ),
                unit="bytes",
                width=12,
            ),
        ],
        "Growth": [
            lines(
                "Largest tables",
                "Size of the ten largest tables with their indexes.",
                (f"topk(10, db_table_size_bytes{{{DATABASE}}})", "{{instance}} {{datname}} {{name}}"),
                unit="bytes",
            ),
            lines(
                "Dead rows",
                "The ten tables with the most dead rows.",
                (f"topk(10, db_table_dead_rows{{{DATABASE}}})", "{{instance}} {{datname}} {{name}}"),
            ),
        ],
    },
)
