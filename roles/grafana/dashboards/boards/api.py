"""Services: figures of the edge; rate, errors and duration by route, and time in their dependencies."""

from panels import Board, choice, heat, lines, listing, service_choice

SERVICE = 'service=~"$service"'
HOST = f'{SERVICE},instance=~"$instance"'
SCOPE = f'{HOST},route=~"$route"'
WINDOW = "[$__rate_interval]"

BOARD = Board(
    uid="api",
    title="Services",
    text="Rate, errors and duration at the edge; routes and dependencies of services with metrics.",
    variables=[
        service_choice(),
        choice("instance", "Host", 'up{job="app"}', "instance"),
        choice("route", "Route", "http_requests_total", "route"),
    ],
    events={"Release": f"fastmetal_deploy_timestamp_seconds{{{SERVICE}}}"},
    rows={
        "At the edge": [
            lines(
                "Responses at the edge",
                "Responses per second by status, of every service, with those that never reached it.",
                (
                    f"sum by (service, status) (rate(edge_requests_total{{{SERVICE}}}{WINDOW}))",
                    "{{service}} {{status}}",
                ),
                unit="reqps",
                width=8,
                stacked=True,
            ),
            lines(
                "Error ratio at the edge",
                "Share of responses that are server errors (5xx) over five minutes.",
                (f'slo:bad_requests:ratio{{slo="availability",window="5m",{SERVICE}}}', "{{service}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Duration at the edge",
                "95 % of the requests are faster.",
                (
                    "histogram_quantile(0.95, sum by (service, le)"
                    f" (rate(edge_request_duration_seconds_bucket{{{SERVICE}}}{WINDOW})))",
                    "{{service}}",
                ),
                unit="s",
                width=8,
            ),
        ],
        "By route": [
            lines(
                "Request rate",
                "Requests per second over five minutes, on all hosts.",
                (
                    f'route:http_requests:rate5m{{{SERVICE},route=~"$route"}}',
                    "{{service}} {{method}} {{route}}",
                ),
                unit="reqps",
            ),
            lines(
                "Error ratio",
                "Share of responses that are server errors (5xx) over five minutes, on all hosts.",
                (
                    f'route:http_errors:ratio_rate5m{{{SERVICE},route=~"$route"}}',
                    "{{service}} {{method}} {{route}}",
                ),
                unit="percentunit",
            ),
            lines(
                "p50 duration",
                "50 % of the requests are faster.",
                (
                    f'route:http_request_duration_seconds:p50_5m{{{SERVICE},route=~"$route"}}',
                    "{{service}} {{method}} {{route}}",
                ),
                unit="s",
                width=8,
            ),
            lines(
                "p95 duration",
                "95 % of the requests are faster.",
                (
                    f'route:http_request_duration_seconds:p95_5m{{{SERVICE},route=~"$route"}}',
                    "{{service}} {{method}} {{route}}",
                ),
                unit="s",
                width=8,
            ),
            lines(
                "p99 duration",
                "99 % of the requests are faster.",
                (
                    f'route:http_request_duration_seconds:p99_5m{{{SERVICE},route=~"$route"}}',
                    "{{service}} {{method}} {{route}}",
                ),
                unit="s",
                width=8,
            ),
        ],
        "On the selected hosts": [
            heat(
                "Durations",
                "Number of requests by duration.",
                f"sum by (le) (increase(http_request_duration_seconds_bucket{{{SCOPE}}}{WINDOW}))",
            ),
            lines(
                "Responses by status",
                "Responses per second.",
                (f"sum by (status) (rate(http_requests_total{{{SCOPE}}}{WINDOW}))", "{{status}}"),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "In flight",
                "Requests that the workers are processing.",
                (
                    f"sum by (instance, service) (http_requests_in_flight{{{HOST}}})",
                    "{{instance}} {{service}}",
                ),
                width=8,
            ),
            lines(
                "CPU",
                "Share of the host's CPUs that the workers use.",
                (f"instance_service:app_cpu:utilisation5m{{{HOST}}}", "{{instance}} {{service}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Memory",
                "Resident memory of the workers.",
                (f"app_resident_memory_bytes{{{HOST}}}", "{{instance}} {{service}}"),
                unit="bytes",
                width=8,
            ),
            lines(
                "Response bytes",
                "Bytes of response bodies per second.",
                (
                    f"sum by (instance, service) (rate(http_response_bytes_total{{{SCOPE}}}{WINDOW}))",
                    "{{instance}} {{service}}",
                ),
                unit="Bps",
                width=8,
            ),
            lines(
                "Connection pool",
                "Connections to Postgres by state.",
                (
                    f"sum by (instance, service, state) (database_pool_connections{{{HOST}}})",
                    "{{instance}} {{service}} {{state}}",
                ),
                width=8,
            ),
            lines(
                "Database errors",
                "Failed statements per second.",
                (
                    f"sum(rate(database_errors_total{{{HOST}}}{WINDOW})) or vector(0)",
                    "failed",
                ),
                unit="ops",
                width=8,
            ),
        ],
        "Dependencies": [
            lines(
                "Time in Postgres",
                "p95 duration by kind of statement.",
                (
                    "histogram_quantile(0.95, sum by (le, query)"
                    f" (rate(database_query_duration_seconds_bucket{{{HOST}}}{WINDOW})))",
                    "{{query}}",
                ),
                unit="s",
                width=8,
            ),
            lines(
                "Time in Redis",
                "p95 duration by kind of operation.",
                (
                    "histogram_quantile(0.95, sum by (le, operation)"
                    f" (rate(cache_operation_duration_seconds_bucket{{{HOST}}}{WINDOW})))",
                    "{{operation}}",
                ),
                unit="s",
                width=8,
            ),
            lines(
                "Cache",
                "Operations per second by result.",
                (
                    f"sum by (operation, result) (rate(cache_requests_total{{{HOST}}}{WINDOW}))",
                    "{{operation}} {{result}}",
                ),
                unit="ops",
                width=8,
            ),
        ],
        "Versions": [
            listing(
                "Live versions",
                "One row per host and live release.",
                f"app_build_info{{{HOST}}}",
                ["instance", "service", "release", "version", "python"],
            ),
        ],
    },
)
