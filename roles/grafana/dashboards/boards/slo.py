"""Objectives: how much of the error budget is gone, and how fast it goes."""

from panels import Board, lines, listing, number, worse_above, worse_below


def bad(slo: str) -> str:
    """Return the share of requests that were bad in the chosen time range."""
    return (
        f'sum_over_time(slo:bad_requests:rate5m{{slo="{slo}"}}[$__range])'
        " / on () group_left () sum_over_time(slo:requests:rate5m[$__range])"
    )


def left(slo: str) -> str:
    """Return the share of the error budget that the chosen time range leaves."""
    return f"1 - ({bad(slo)}) / on (slo) slo:budget"


BOARD = Board(
    uid="slo",
    title="Objectives",
    text="How much of the error budget is gone, and how fast it goes.",
    since="now-24h",
    rows={
        "Now": [
            number(
                "Availability",
                "Share of requests without an error of ours (5xx), in the chosen time range.",
                f"1 - ({bad('availability')})",
                unit="percentunit",
                steps=worse_below(0.999, 0.99),
            ),
            number(
                "Fast enough",
                "Share of requests answered within 250 ms, in the chosen time range.",
                f"1 - ({bad('latency')})",
                unit="percentunit",
                steps=worse_below(0.99, 0.9),
            ),
            number(
                "Availability: left",
                "Share of the budget that the chosen time range leaves; below zero the objective is missed.",
                left("availability"),
                unit="percentunit",
                steps=worse_below(0.5, 0),
            ),
            number(
                "Latency: left",
                "Share of the budget that the chosen time range leaves; below zero the objective is missed.",
                left("latency"),
                unit="percentunit",
                steps=worse_below(0.5, 0),
            ),
            number(
                "Burn rate",
                "Of the worse objective, over an hour; at 1 a month's budget lasts a month.",
                'max(slo:bad_requests:ratio{window="1h"} / on (slo) group_left () slo:budget)',
                steps=worse_above(1, 14.4),
            ),
            number(
                "Requests",
                "At the edge, a second.",
                "slo:requests:rate5m",
                unit="reqps",
                steps=[(None, "blue")],
            ),
        ],
        "How fast it goes": [
            lines(
                "Availability: burn rate",
                "Alerts fire at 14.4 over 5m and 1h, 6 over 30m and 6h, 3 over 2h and 1d, 1 over 6h and 3d.",
                (
                    'slo:bad_requests:ratio{slo="availability"} / on (slo) group_left () slo:budget',
                    "{{window}}",
                ),
            ),
            lines(
                "Latency: burn rate",
                "The same for requests that take longer than 250 ms.",
                ('slo:bad_requests:ratio{slo="latency"} / on (slo) group_left () slo:budget', "{{window}}"),
            ),
            lines(
                "Bad requests",
                "A second.",
                ("slo:bad_requests:rate5m", "{{slo}}"),
                unit="reqps",
            ),
            listing(
                "Budget",
                "Share of requests that may be bad; set prometheus_slo_* to change it.",
                "slo:budget",
                ["slo"],
                unit="percentunit",
                width=12,
            ),
        ],
    },
)
