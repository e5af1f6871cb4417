"""The edge: responses to clients, rate limits, connections and upstreams."""

from panels import (
    Board,
    choice,
    heat,
    lines,
    listing,
    number,
    service_choice,
    truth,
    worse_above,
    worse_below,
)

SCOPE = 'instance=~"$instance"'
SERVICE = f'{SCOPE},service=~"$service"'
WINDOW = "[$__rate_interval]"


def share(of: str, condition: str) -> str:
    """Return the share of the edge's requests that another counter has with a label's condition."""
    return (
        f"sum by (instance, service) (rate({of}{{{SERVICE},{condition}}}{WINDOW}))"
        f" / sum by (instance, service) (rate(edge_requests_total{{{SERVICE}}}{WINDOW}))"
    )


BOARD = Board(
    uid="nginx",
    title="nginx and the edge",
    text="Responses to clients, rate limits, connections and upstreams.",
    variables=[choice("instance", "Host", "nginx_up", "instance"), service_choice()],
    rows={
        "Now": [
            truth(
                "nginx",
                "Yes if nginx answers on every selected host.",
                f"min(nginx_up{{{SCOPE}}})",
            ),
            truth(
                "Site",
                "Yes if every public name answers over verified TLS with the expected status.",
                'min(probe_success{module=~"site|reachable",service=~"$service"})',
            ),
            truth(
                "HTTPS redirect",
                "Yes if plain HTTP redirects to HTTPS on every public name.",
                'min(probe_success{module="redirect",service=~"$service"})',
            ),
            number(
                "Certificate",
                "Time until the first public certificate expires.",
                "min(probe_ssl_earliest_cert_expiry) - time()",
                unit="s",
                steps=worse_below(20 * 86400, 5 * 86400),
            ),
            number(
                "Connections",
                "Open client connections.",
                f"sum(nginx_connections_active{{{SCOPE}}})",
                steps=[(None, "blue")],
            ),
            number(
                "Upstream failures",
                "Failed attempts to reach the service in the selected time range.",
                f"sum(increase(edge_upstream_failures_total{{{SERVICE}}}[$__range]))",
                steps=worse_above(1, 100),
            ),
        ],
        "Clients": [
            lines(
                "Responses by status",
                "Responses per second.",
                (f"sum by (status) (rate(edge_requests_total{{{SERVICE}}}{WINDOW}))", "{{status}}"),
                unit="reqps",
                stacked=True,
            ),
            heat(
                "Durations",
                "Number of requests by duration, from the first byte received to the last byte sent.",
                f"sum by (le) (increase(edge_request_duration_seconds_bucket{{{SERVICE}}}{WINDOW}))",
            ),
            lines(
                "Error ratio",
                "Share of responses with status 5xx.",
                (share("edge_requests_total", 'status=~"5.."'), "{{instance}} {{service}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Rate limited",
                "Share of requests above a limit: refused with status 429, or counted in a dry run.",
                (share("edge_requests_total", 'status="429"'), "{{instance}} {{service}}"),
                (
                    share("edge_limited_requests_total", 'result="dry_run"'),
                    "{{instance}} {{service}} (dry run)",
                ),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Upstream failures",
                "Failed attempts per second to reach the service; nginx tries another host if it may.",
                (f"rate(edge_upstream_failures_total{{{SERVICE}}}{WINDOW})", "{{instance}} {{service}}"),
                unit="ops",
                width=8,
            ),
        ],
        "Connections": [
            lines(
                "Connections by state",
                "Client connections by state.",
                (f"nginx_connections_reading{{{SCOPE}}}", "{{instance}} reading"),
                (f"nginx_connections_writing{{{SCOPE}}}", "{{instance}} writing"),
                (f"nginx_connections_waiting{{{SCOPE}}}", "{{instance}} waiting"),
                width=8,
            ),
            lines(
                "New connections",
                "Accepted connections per second.",
                (f"rate(nginx_connections_accepted{{{SCOPE}}}{WINDOW})", "{{instance}}"),
                unit="ops",
                width=8,
            ),
            lines(
                "Dropped connections",
                "Accepted but unhandled connections per second: worker_connections is too low.",
                (
                    f"rate(nginx_connections_accepted{{{SCOPE}}}{WINDOW})"
                    f" - rate(nginx_connections_handled{{{SCOPE}}}{WINDOW})",
                    "{{instance}}",
                ),
                unit="ops",
                width=8,
            ),
        ],
        "Probes and certificates": [
            lines(
                "Phases of a request",
                "Duration of each phase of the probe, by public name.",
                (
                    'probe_http_duration_seconds{module=~"site|reachable",service=~"$service"}',
                    "{{instance}} {{phase}}",
                ),
                unit="s",
                stacked=True,
            ),
            listing(
                "Certificates",
                "Time until each certificate expires.",
                f"sort(fastmetal_certificate_expiry_timestamp_seconds{{{SCOPE}}} - time())",
                ["instance", "path"],
                unit="s",
                width=12,
            ),
        ],
    },
)
