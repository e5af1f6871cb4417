"""Releases: the live release of each host, the last change, and its effect on clients."""

from panels import Board, lines, listing, number, truth, worse_above

BOARD = Board(
    uid="releases",
    title="Releases",
    text="The live release of each host, the last change, and its effect on clients.",
    since="now-6h",
    events={"Release": "fastmetal_deploy_timestamp_seconds"},
    rows={
        "Now": [
            number(
                "Live releases",
                "More than one: a release is in progress or stopped half way.",
                "count(count by (service, release) (fastmetal_release_info))",
                steps=worse_above(2, 3),
            ),
            truth(
                "Last change",
                "Yes if the last deploy, rollback or restart succeeded on every host.",
                "min(fastmetal_deploy_success)",
            ),
            number(
                "Duration",
                "Duration of the last change on the slowest host.",
                "max(fastmetal_deploy_duration_seconds)",
                unit="s",
                steps=[(None, "blue")],
            ),
            number(
                "Age",
                "Time since the last change of any host.",
                "time() - max(fastmetal_deploy_timestamp_seconds)",
                unit="s",
                steps=[(None, "blue")],
            ),
            number(
                "Hosts",
                "Hosts on which the service answers.",
                "count(app_build_info)",
                steps=[(None, "blue")],
            ),
            number(
                "Starts",
                "Starts of service instances in the selected time range.",
                "sum(changes(app_build_info[$__range])) + count(app_build_info)",
                steps=[(None, "blue")],
            ),
        ],
        "Each host": [
            listing(
                "Live releases",
                "The live release of each host.",
                "fastmetal_release_info",
                ["instance", "service", "release"],
                width=8,
            ),
            listing(
                "Last change",
                "Result by host: 1 for success, 0 for failure.",
                "fastmetal_deploy_success",
                ["instance", "action", "release"],
                width=8,
            ),
            listing(
                "Duration of the last change",
                "Duration by host.",
                "fastmetal_deploy_duration_seconds",
                ["instance", "action", "release"],
                unit="s",
                width=8,
            ),
        ],
        "Clients": [
            lines(
                "Requests",
                "Requests per second at the edge.",
                ("slo:requests:rate5m", "requests"),
                unit="reqps",
                width=8,
            ),
            lines(
                "Error ratio",
                "Share of the edge's responses with status 5xx.",
                ('slo:bad_requests:ratio{slo="availability",window="5m"}', "errors"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Hosts by release",
                "Number of hosts on which each release answers.",
                ("count by (release) (app_build_info)", "{{release}}"),
                width=8,
                stacked=True,
            ),
        ],
    },
)
