"""The service: rate, errors and duration by route, and time in its dependencies."""

from panels import Board, choice, heat, lines, listing

SCOPE = 'instance=~"$instance",route=~"$route"'
WINDOW = "[$__rate_interval]"

BOARD = Board(
    uid="api",
    title="API",
    text="Rate, errors and duration of each route, and time in Postgres and Redis.",
    variables=[
        choice("instance", "Host", "app_build_info", "instance"),
        choice("route", "Route", "http_requests_total", "route"),
    ],
    events={"Release": "fastmetal_deploy_timestamp_seconds"},
    rows={
        "By route": [
            lines(
                "Request rate",
                "Requests per second over five minutes, on all hosts.",
                ('route:http_requests:rate5m{route=~"$route"}', "{{method}} {{route}}"),
                unit="reqps",
            ),
            lines(
                "Error ratio",
                "Share of responses that are server errors (5xx) over five minutes, on all hosts.",
                ('route:http_errors:ratio_rate5m{route=~"$route"}', "{{method}} {{route}}"),
                unit="percentunit",
            ),
            lines(
                "p50 duration",
                "50 % of the requests are faster.",
                ('route:http_request_duration_seconds:p50_5m{route=~"$route"}', "{{method}} {{route}}"),
                unit="s",
                width=8,
            ),
            lines(
                "p95 duration",
                "95 % of the requests are faster.",
                ('route:http_request_duration_seconds:p95_5m{route=~"$route"}', "{{method}} {{route}}"),
                unit="s",
                width=8,
            ),
            lines(
                "p99 duration",
                "99 % of the requests are faster.",
                ('route:http_request_duration_seconds:p99_5m{route=~"$route"}', "{{method}} {{route}}"),
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
                ('sum by (instance) (http_requests_in_flight{instance=~"$instance"})', "{{instance}}"),
                width=8,
            ),
            lines(
                "CPU",
                "Share of the host's CPUs that the workers use.",
                ('instance:app_cpu:utilisation5m{instance=~"$instance"}', "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Memory",
                "Resident memory of the workers.",
                ('app_resident_memory_bytes{instance=~"$instance"}', "{{instance}}"),
                unit="bytes",
                width=8,
            ),
            lines(
                "Response bytes",
                "Bytes of response bodies per second.",
                (f"sum by (instance) (rate(http_response_bytes_total{{{SCOPE}}}{WINDOW}))", "{{instance}}"),
                unit="Bps",
                width=8,
            ),
            lines(
                "Connection pool",
                "Connections to Postgres by state.",
                (
                    'sum by (instance, state) (database_pool_connections{instance=~"$instance"})',
                    "{{instance}} {{state}}",
                ),
                width=8,
            ),
            lines(
                "Database errors",
                "Failed statements per second.",
                (
                    f'sum(rate(database_errors_total{{instance=~"$instance"}}{WINDOW})) or vector(0)',
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
                    f' (rate(database_query_duration_seconds_bucket{{instance=~"$instance"}}{WINDOW})))',
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
                    f' (rate(cache_operation_duration_seconds_bucket{{instance=~"$instance"}}{WINDOW})))',
                    "{{operation}}",
                ),
                unit="s",
                width=8,
            ),
            lines(
                "Cache",
                "Operations per second by result.",
                (
                    "sum by (operation, result)"
                    f' (rate(cache_requests_total{{instance=~"$instance"}}{WINDOW}))',
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
                'app_build_info{instance=~"$instance"}',
                ["instance", "release", "version", "python"],
            ),
        ],
    },
)
