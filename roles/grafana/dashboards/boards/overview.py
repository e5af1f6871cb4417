"""The first dashboard to open in an incident: is the site up, what is wrong, where to look next."""

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
                "Yes if every public name returns 200 over verified TLS.",
                'min(probe_success{module="site"})',
            ),
            number(
                "Alerts",
                "Firing alerts of severity critical or warning.",
                f"count({SERIOUS}) or vector(0)",
                steps=worse_above(1, 3),
            ),
            number(
                "Targets down",
                "Targets that Prometheus cannot scrape.",
                "count(up == 0) or vector(0)",
                steps=worse_above(1, 2),
            ),
            number(
                "Requests",
                "Requests per second at the edge over five minutes.",
                "slo:requests:rate5m",
                unit="reqps",
                steps=[(None, "blue")],
            ),
            number(
                "Errors",
                "Share of the edge's responses that are server errors (5xx) over five minutes.",
                'slo:bad_requests:ratio{slo="availability",window="5m"}',
                unit="percentunit",
                steps=worse_above(0.001, 0.05),
            ),
            number(
                "Slow",
                "Share of requests that took longer than 250 ms at the edge over five minutes.",
                'slo:bad_requests:ratio{slo="latency",window="5m"}',
                unit="percentunit",
                steps=worse_above(0.01, 0.1),
            ),
        ],
        "Alerts": [
            listing(
                "Firing alerts",
                "Each alert has a section in docs/runbooks. Watchdog always fires, as a test.",
                'ALERTS{alertstate="firing"}',
                ["alertname", "severity", "instance", "name", "route", "slo", "job"],
            ),
        ],
        "Clients": [
            lines(
                "Responses by status",
                "Responses per second at the edge by status class.",
                (
                    "sum by (class) (label_replace(rate(edge_requests_total[$__rate_interval]),"
                    ' "class", "${1}xx", "status", "(.).*"))',
                    "{{class}}",
                ),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Duration",
                "At the edge; 50 %, 95 % and 99 % of the requests are faster.",
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
        "Resources": [
            lines(
                "CPU",
                "Share of each host's CPUs that is busy.",
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
                "Used share of the fullest file system of each host.",
                ("max by (instance) (instance_mountpoint:node_filesystem:utilisation)", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Postgres connections",
                "Client connections as a share of max_connections.",
                ("db_server_connections / db_server_max_connections", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Redis memory",
                "Used share of maxmemory; a full cache is normal.",
                ("redis_memory_used_bytes / (redis_memory_max_bytes > 0)", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Workers",
                "Share of each host's CPUs that the service uses.",
                ("instance:app_cpu:utilisation5m", "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
        ],
        "Releases and certificates": [
            listing(
                "Live releases",
                "The live release of each host.",
                "fastmetal_release_info",
                ["instance", "service", "release"],
                width=12,
            ),
            listing(
                "Certificates",
                "Time until each certificate expires, soonest first.",
                "sort(fastmetal_certificate_expiry_timestamp_seconds - time())",
                ["instance", "path"],
                unit="s",
                width=12,
            ),
        ],
    },
)
