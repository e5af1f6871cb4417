"""The edge: what clients are answered, what it refuses, and the way to the service."""

from panels import Board, choice, heat, lines, listing, number, truth, worse_above, worse_below

SCOPE = 'instance=~"$instance"'
WINDOW = "[$__rate_interval]"


def of_all(status: str) -> str:
    """Return the share of the edge's answers with such a status."""
    return (
        f'sum by (instance) (rate(edge_requests_total{{{SCOPE},status=~"{status}"}}{WINDOW}))'
        f" / sum by (instance) (rate(edge_requests_total{{{SCOPE}}}{WINDOW}))"
    )


BOARD = Board(
    uid="nginx",
    title="Nginx and the edge",
    text="What clients are answered, what is refused, and the way to the service.",
    variables=[choice("instance", "Host", "nginx_up", "instance")],
    rows={
        "Now": [
            truth(
                "Nginx",
                "Whether it answers on every host.",
                f"min(nginx_up{{{SCOPE}}})",
            ),
            truth(
                "From outside",
                "Whether every public name answers over TLS.",
                'min(probe_success{module="site"})',
            ),
            truth(
                "To HTTPS",
                "Whether plain HTTP leads there.",
                'min(probe_success{module="redirect"})',
            ),
            number(
                "Certificate",
                "Time until the first public certificate ends.",
                "min(probe_ssl_earliest_cert_expiry) - time()",
                unit="s",
                steps=worse_below(20 * 86400, 5 * 86400),
            ),
            number(
                "Connections",
                "Open ones of clients.",
                f"sum(nginx_connections_active{{{SCOPE}}})",
                steps=[(None, "blue")],
            ),
            number(
                "Attempts that failed",
                "On the service, in the chosen time range.",
                f"sum(increase(edge_upstream_failures_total{{{SCOPE}}}[$__range]))",
                steps=worse_above(1, 100),
            ),
        ],
        "Clients": [
            lines(
                "Answers by status",
                "A second.",
                (f"sum by (status) (rate(edge_requests_total{{{SCOPE}}}{WINDOW}))", "{{status}}"),
                unit="reqps",
                stacked=True,
            ),
            heat(
                "Durations",
                "How many requests took how long, from the first byte read to the last one sent.",
                f"sum by (le) (increase(edge_request_duration_seconds_bucket{{{SCOPE}}}{WINDOW}))",
            ),
            lines(
                "Errors",
                "Share of answers with 5xx.",
                (of_all("5.."), "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Refused for their number",
                "Share of answers with 429.",
                (of_all("429"), "{{instance}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Attempts that failed",
                "On the service, a second; nginx tries another host where it may.",
                (f"rate(edge_upstream_failures_total{{{SCOPE}}}{WINDOW})", "{{instance}}"),
                unit="ops",
                width=8,
            ),
        ],
        "Connections": [
            lines(
                "What they do",
                "Of clients.",
                (f"nginx_connections_reading{{{SCOPE}}}", "{{instance}} reading"),
                (f"nginx_connections_writing{{{SCOPE}}}", "{{instance}} writing"),
                (f"nginx_connections_waiting{{{SCOPE}}}", "{{instance}} waiting"),
                width=8,
            ),
            lines(
                "New ones",
                "A second.",
                (f"rate(nginx_connections_accepted{{{SCOPE}}}{WINDOW})", "{{instance}}"),
                unit="ops",
                width=8,
            ),
            lines(
                "Dropped",
                "Accepted and not handled, a second: worker_connections is too low.",
                (
                    f"rate(nginx_connections_accepted{{{SCOPE}}}{WINDOW})"
                    f" - rate(nginx_connections_handled{{{SCOPE}}}{WINDOW})",
                    "{{instance}}",
                ),
                unit="ops",
                width=8,
            ),
        ],
        "From outside": [
            lines(
                "Phases of a request",
                "Of the probe of each public name.",
                ('probe_http_duration_seconds{module="site"}', "{{instance}} {{phase}}"),
                unit="s",
                stacked=True,
            ),
            listing(
                "Certificates",
                "Time until each ends.",
                f"sort(fastmetal_certificate_expiry_timestamp_seconds{{{SCOPE}}} - time())",
                ["instance", "path"],
                unit="s",
                width=12,
            ),
        ],
    },
)
