"""The dashboard to open at three in the morning: is the site up, what is wrong, where to look next."""

from panels import Board, lines, listing, number, truth, worse_above

SERIOUS = 'ALERTS{alertstate="firing",severity=~"critical|warning"}'

BOARD = Board(
    uid="overview",
    title="Overview",
    text="Is the site up, what is wrong, and where to look next.",
    rows={
        "Now": [
            truth(
                "Site",
                "Whether every public name answers as a client expects.",
                'min(probe_success{module="site"})',
            ),
            number(
                "Alerts",
                "Firing alerts that want somebody.",
                f"count({SERIOUS}) or vector(0)",
                steps=worse_above(1, 3),
            ),
            number(
                "Targets down",
                "Exporters and services that do not answer Prometheus.",
                "count(up == 0) or vector(0)",
                steps=worse_above(1, 2),
            ),
            number(
                "Requests",
                "Answered at the edge, a second, over five minutes.",
                "slo:requests:rate5m",
                unit="reqps",
                steps=[(None, "blue")],
            ),
            number(
                "Errors",
                "Share of the edge's answers that are errors of ours (5xx), over five minutes.",
                'slo:bad_requests:ratio{slo="availability",window="5m"}',
                unit="percentunit",
                steps=worse_above(0.001, 0.05),
            ),
            number(
                "Slow",
                "Share of requests that took longer than 250 ms at the edge, over five minutes.",
                'slo:bad_requests:ratio{slo="latency",window="5m"}',
                unit="percentunit",
                steps=worse_above(0.01, 0.1),
            ),
        ],
        "What is wrong": [
            listing(
                "Firing alerts",
                "Each has a section in docs/runbooks. Watchdog is always here: alerts work.",
                'ALERTS{alertstate="firing"}',
                ["alertname", "severity", "instance", "name", "route", "slo", "job"],
            ),
        ],
        "Clients": [
            lines(
                "Answers by status",
                "At the edge, by the class of the status.",
                (
                    "sum by (class) (label_replace(rate(edge_requests_total[$__rate_interval]),"
                    ' "class", "${1}xx", "status", "(.).*"))',
                    "{{class}}",
                ),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Time to answer",
                "At the edge; half, all but a twentieth and all but a hundredth of requests are faster.",
                *(
                    (
                        f"histogram_quantile({quantile}, sum by (le)"
                        " (rate(edge_request_duration_seconds_bucket[$__rate_interval])))",
                        f"p{quantile * 100:.0f}",
                    )
                    for quantile in (0.5, 0.95, 0.99)
                ),
                unit="s",
            ),
        ],
        "What runs short": [
            lines(
                "Processors",
                "Share of each host's processors that is busy.",
                ("instance:node_cpu:utilisation5m", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Memory",
                "Share of each host's memory that is in use.",
                ("instance:node_memory:utilisation", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Disks",
                "The fullest file system of each host.",
                ("max by (instance) (instance_mountpoint:node_filesystem:utilisation)", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Postgres connections",
                "Share of the connections that the server accepts.",
                ("db_server_connections / db_server_max_connections", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Redis memory",
                "Share of the memory it may take; a full cache is a good cache.",
                ("redis_memory_used_bytes / (redis_memory_max_bytes > 0)", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Workers",
                "Share of the host's processors that the service uses.",
                ("instance:app_cpu:utilisation5m", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
        ],
        "What changed": [
            listing(
                "Live releases",
                "What runs on each host.",
                "fastmetal_release_info",
                ["instance", "service", "release"],
                width=12,
            ),
            listing(
                "Certificates",
                "When each certificate ends, the next one first.",
                "sort(fastmetal_certificate_expiry_timestamp_seconds - time())",
                ["instance", "path"],
                unit="s",
                width=12,
            ),
        ],
    },
)
