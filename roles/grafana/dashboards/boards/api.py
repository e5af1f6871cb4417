"""The service by route: rate, errors, duration; and what it waits for."""

from panels import Board, choice, heat, lines, listing

SCOPE = 'instance=~"$instance",route=~"$route"'
WINDOW = "[$__rate_interval]"

BOARD = Board(
    uid="api",
    title="API",
    text="Rate, errors and duration of each route, and what the service waits for.",
    variables=[
        choice("instance", "Host", "app_build_info", "instance"),
        choice("route", "Route", "http_requests_total", "route"),
    ],
    events={"Release": "fastmetal_deploy_timestamp_seconds"},
    rows={
        "By route": [
            lines(
                "Requests",
                "Answered, a second, over five minutes, on all hosts.",
                ('route:http_requests:rate5m{route=~"$route"}', "{{method}} {{route}}"),
                unit="reqps",
            ),
            lines(
                "Errors",
                "Share of answers that are errors of ours (5xx), over five minutes, on all hosts.",
                ('route:http_errors:ratio_rate5m{route=~"$route"}', "{{method}} {{route}}"),
                unit="percentunit",
            ),
            lines(
                "Median duration",
                "Half of the requests are faster.",
                ('route:http_request_duration_seconds:p50_5m{route=~"$route"}', "{{method}} {{route}}"),
                unit="s",
                width=8,
            ),
            lines(
                "p95 duration",
                "All but a twentieth are faster.",
                ('route:http_request_duration_seconds:p95_5m{route=~"$route"}', "{{method}} {{route}}"),
                unit="s",
                width=8,
            ),
            lines(
                "p99 duration",
                "All but a hundredth are faster.",
                ('route:http_request_duration_seconds:p99_5m{route=~"$route"}', "{{method}} {{route}}"),
                unit="s",
                width=8,
            ),
        ],
        "On the chosen hosts": [
            heat(
                "Durations",
                "How many requests took how long.",
                f"sum by (le) (increase(http_request_duration_seconds_bucket{{{SCOPE}}}{WINDOW}))",
            ),
            lines(
                "Answers by status",
                "A second.",
                (f"sum by (status) (rate(http_requests_total{{{SCOPE}}}{WINDOW}))", "{{status}}"),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "In flight",
                "Requests being served.",
                ('sum by (instance) (http_requests_in_flight{instance=~"$instance"})', "{{instance}}"),
                width=8,
            ),
            lines(
                "Processor time",
                "Share of the host's processors that the workers use.",
                ('instance:app_cpu:utilisation5m{instance=~"$instance"}', "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Memory",
                "Of the workers.",
                ('app_resident_memory_bytes{instance=~"$instance"}', "{{instance}}"),
                unit="bytes",
                width=8,
            ),
            lines(
                "Answers, in bytes",
                "Bodies sent, a second.",
                (f"sum by (instance) (rate(http_response_bytes_total{{{SCOPE}}}{WINDOW}))", "{{instance}}"),
                unit="Bps",
                width=8,
            ),
            lines(
                "Pool",
                "Connections to Postgres, by what they do.",
                (
                    'sum by (instance, state) (database_pool_connections{instance=~"$instance"})',
                    "{{instance}} {{state}}",
                ),
                width=8,
            ),
            lines(
                "Errors of the database",
                "Statements that failed, a second.",
                (
                    f'sum(rate(database_errors_total{{instance=~"$instance"}}{WINDOW})) or vector(0)',
                    "failed",
                ),
                unit="ops",
                width=8,
            ),
        ],
        "What it waits for": [
            lines(
                "Time in Postgres",
                "p95 of each kind of statement.",
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
                "p95 of each kind of operation.",
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
                "Operations a second, by what came of them.",
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
                "What runs",
                "One line for each host and release that is being served.",
                'app_build_info{instance=~"$instance"}',
                ["instance", "release", "version", "python"],
            ),
        ],
    },
)
