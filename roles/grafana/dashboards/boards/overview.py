"""The first dashboard to open in an incident: is the site up, what is wrong, where to look next."""

from panels import Board, lines, listing, number, service_choice, truth, worse_above

from boards.postgres import backup_numbers

SERIOUS = 'ALERTS{alertstate="firing",severity=~"critical|warning"}'

SCOPE = 'service=~"$service"'

BOARD = Board(
    uid="overview",
    title="Overview",
    text="Is the site up, what is wrong, and where to look next.",
    variables=[service_choice()],
    rows={
        "Now": [
            truth(
                "Site",
                "Yes if every public name answers over verified TLS with the expected status.",
                f'min(probe_success{{module=~"site|reachable",{SCOPE}}})',
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
                f"sum(slo:requests:rate5m{{{SCOPE}}})",
                unit="reqps",
                steps=[(None, "blue")],
            ),
            number(
                "Errors",
                "Share of the edge's responses that are server errors (5xx), of the service with the most.",
                f'max(slo:bad_requests:ratio{{slo="availability",window="5m",{SCOPE}}})',
                unit="percentunit",
                steps=worse_above(0.001, 0.05),
            ),
            number(
                "Slow",
                "Share of requests that took longer than 250 ms at the edge, of the service with the most.",
                f'max(slo:bad_requests:ratio{{slo="latency",window="5m",{SCOPE}}})',
                unit="percentunit",
                steps=worse_above(0.01, 0.1),
            ),
        ],
        "Alerts": [
            listing(
                "Firing alerts",
                "Each alert has a section in docs/runbooks. Watchdog always fires, as a test.",
                'ALERTS{alertstate="firing"}',
                ["alertname", "severity", "service", "instance", "name", "route", "slo", "job"],
            ),
        ],
        "Backups": backup_numbers(),
        "Services": [
            lines(
                "Requests by service",
                "Requests per second at the edge over five minutes.",
                (f"slo:requests:rate5m{{{SCOPE}}}", "{{service}}"),
                unit="reqps",
                width=8,
            ),
            lines(
                "Error ratio by service",
                "Share of the edge's responses that are server errors (5xx) over five minutes.",
                (f'slo:bad_requests:ratio{{slo="availability",window="5m",{SCOPE}}}', "{{service}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "p95 duration by service",
                "At the edge; 95 % of the requests are faster.",
                (
                    "histogram_quantile(0.95, sum by (service, le)"
                    f" (rate(edge_request_duration_seconds_bucket{{{SCOPE}}}[$__rate_interval])))",
                    "{{service}}",
                ),
                unit="s",
                width=8,
            ),
        ],
        "Clients": [
            lines(
                "Responses by status",
                "Responses per second at the edge by status class.",
                (
                    f"sum by (class) (label_replace(rate(edge_requests_total{{{SCOPE}}}[$__rate_interval]),"
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
                        f" (rate(edge_request_duration_seconds_bucket{{{SCOPE}}}[$__rate_interval])))",
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
                "Used share of maxmemory; a full cache is normal, a full queue refuses writes.",
                ("redis_memory_used_bytes / (redis_memory_max_bytes > 0)", "{{instance}} {{server}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Workers",
                "Share of each host's CPUs that the workers of a service use.",
                (f"instance_service:app_cpu:utilisation5m{{{SCOPE}}}", "{{instance}} {{service}}"),
                unit="percentunit",
                width=8,
            ),
        ],
        "Releases and certificates": [
            listing(
                "Live releases",
                "The live release of each host.",
                f"fastmetal_release_info{{{SCOPE}}}",
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
