"""Service level objectives: the error budget that is left, and its burn rate."""

from panels import Board, lines, listing, number, service_choice, worse_above, worse_below

SCOPE = 'service=~"$service"'
RATIO = "slo:bad_requests:ratio"


def bad(slo: str) -> str:
    """Return the share of each service's requests that were bad in the selected time range."""
    return (
        f'sum_over_time(slo:bad_requests:rate5m{{slo="{slo}",{SCOPE}}}[$__range])'
        " / on (service) group_left () (sum_over_time(slo:requests:rate5m[$__range]) > 0)"
    )


def left(slo: str) -> str:
    """Return the share of the error budget that is left in the selected time range, of the worst service."""
    return f"min(1 - ({bad(slo)}) / on (slo) group_left () slo:budget)"


BOARD = Board(
    uid="slo",
    title="Service level objectives",
    text="The error budget that is left, and its burn rate.",
    variables=[service_choice()],
    since="now-24h",
    rows={
        "Now": [
            number(
                "Availability",
                "Share of requests without a server error (5xx) in the time range; the worst service.",
                f"min(1 - ({bad('availability')}))",
                unit="percentunit",
                steps=worse_below(0.999, 0.99),
            ),
            number(
                "Latency",
                "Share of requests that took at most 250 ms in the time range; the worst service.",
                f"min(1 - ({bad('latency')}))",
                unit="percentunit",
                steps=worse_below(0.99, 0.9),
            ),
            number(
                "Availability budget left",
                "Share of the error budget left in the time range; negative if the objective is missed.",
                left("availability"),
                unit="percentunit",
                steps=worse_below(0.5, 0),
            ),
            number(
                "Latency budget left",
                "Share of the error budget left in the time range; negative if the objective is missed.",
                left("latency"),
                unit="percentunit",
                steps=worse_below(0.5, 0),
            ),
            number(
                "Burn rate",
                "Burn rate of the worst objective over one hour; at 1, a month's budget lasts a month.",
                f'max({RATIO}{{window="1h",{SCOPE}}} / on (slo) group_left () slo:budget)',
                steps=worse_above(1, 14.4),
            ),
            number(
                "Requests",
                "Requests per second at the edge.",
                f"sum(slo:requests:rate5m{{{SCOPE}}})",
                unit="reqps",
                steps=[(None, "blue")],
            ),
        ],
        "Burn rate": [
            lines(
                "Availability burn rate",
                "Alerts fire at 14.4 over 5m and 1h, 6 over 30m and 6h, 3 over 2h and 1d, 1 over 6h and 3d.",
                (
                    f'{RATIO}{{slo="availability",{SCOPE}}} / on (slo) group_left () slo:budget',
                    "{{service}} {{window}}",
                ),
            ),
            lines(
                "Latency burn rate",
                "As for availability; a request is bad if it takes longer than 250 ms.",
                (
                    f'{RATIO}{{slo="latency",{SCOPE}}} / on (slo) group_left () slo:budget',
                    "{{service}} {{window}}",
                ),
            ),
            lines(
                "Bad requests",
                "Requests per second that violate an objective.",
                (f"slo:bad_requests:rate5m{{{SCOPE}}}", "{{service}} {{slo}}"),
                unit="reqps",
            ),
            listing(
                "Budget",
                "Share of requests that may be bad; change it with prometheus_slo_*_percent.",
                "slo:budget",
                ["slo"],
                unit="percentunit",
                width=12,
            ),
        ],
    },
)
