"""Releases: what runs where, how the last change went, and what it did to clients."""

from panels import Board, lines, listing, number, truth, worse_above

BOARD = Board(
    uid="releases",
    title="Releases",
    text="What runs where, how the last change went, and what it did to clients.",
    since="now-6h",
    events={"Release": "fastmetal_deploy_timestamp_seconds"},
    rows={
        "Now": [
            number(
                "Releases live",
                "More than one is a release under way, or one that stopped half way.",
                "count(count by (service, release) (fastmetal_release_info))",
                steps=worse_above(2, 3),
            ),
            truth(
                "Last change",
                "Whether it ended well on every host.",
                "min(fastmetal_deploy_success)",
            ),
            number(
                "Took",
                "The slowest host's last change.",
                "max(fastmetal_deploy_duration_seconds)",
                unit="s",
                steps=[(None, "blue")],
            ),
            number(
                "Ago",
                "Since the last change of any host.",
                "time() - max(fastmetal_deploy_timestamp_seconds)",
                unit="s",
                steps=[(None, "blue")],
            ),
            number(
                "Hosts",
                "That serve.",
                "count(app_build_info)",
                steps=[(None, "blue")],
            ),
            number(
                "Starts",
                "Of the service's instances that Prometheus has seen, in the chosen time range.",
                "sum(changes(app_build_info[$__range])) + count(app_build_info)",
                steps=[(None, "blue")],
            ),
        ],
        "Each host": [
            listing(
                "Live",
                "What runs on each host.",
                "fastmetal_release_info",
                ["instance", "service", "release"],
                width=8,
            ),
            listing(
                "Last change",
                "How it ended: 1 is well.",
                "fastmetal_deploy_success",
                ["instance", "action", "release"],
                width=8,
            ),
            listing(
                "Took",
                "How long it was.",
                "fastmetal_deploy_duration_seconds",
                ["instance", "action", "release"],
                unit="s",
                width=8,
            ),
        ],
        "What clients saw": [
            lines(
                "Requests",
                "At the edge.",
                ("slo:requests:rate5m", "requests"),
                unit="reqps",
                width=8,
            ),
            lines(
                "Errors",
                "Share of the edge's answers with 5xx.",
                ('slo:bad_requests:ratio{slo="availability",window="5m"}', "errors"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Service, by release",
                "Hosts on which each release answers.",
                ("count by (release) (app_build_info)", "{{release}}"),
                width=8,
                stacked=True,
            ),
        ],
    },
)
