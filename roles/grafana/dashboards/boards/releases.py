"""Releases: the live release of each host, the last change, and its effect on clients."""

from panels import Board, lines, listing, number, service_choice, truth, worse_above

SCOPE = 'service=~"$service"'

BOARD = Board(
    uid="releases",
    title="Releases",
    text="The live release of each host, the last change, and its effect on clients.",
    variables=[service_choice()],
    since="now-6h",
    events={"Release": f"fastmetal_deploy_timestamp_seconds{{{SCOPE}}}"},
    rows={
        "Now": [
            number(
                "Live releases",
                "Of the service with the most. More than one: a release is in progress or stopped half way.",
                f"max(count by (service) (count by (service, release) (fastmetal_release_info{{{SCOPE}}})))",
                steps=worse_above(2, 3),
            ),
            truth(
                "Last change",
                "Yes if the last deploy, rollback or restart succeeded on every host.",
                f"min(fastmetal_deploy_success{{{SCOPE}}})",
            ),
            number(
                "Duration",
                "Duration of the last change on the slowest host.",
                f"max(fastmetal_deploy_duration_seconds{{{SCOPE}}})",
                unit="s",
                steps=[(None, "blue")],
            ),
            number(
                "Age",
                "Time since the last change of any host.",
                f"time() - max(fastmetal_deploy_timestamp_seconds{{{SCOPE}}})",
                unit="s",
                steps=[(None, "blue")],
            ),
            number(
                "Hosts",
                "Hosts that have a live release.",
                f"count(count by (instance) (fastmetal_release_info{{{SCOPE}}}))",
                steps=[(None, "blue")],
            ),
            number(
                "Releases",
                "Releases that were live in the selected time range.",
                "count(count by (service, release)"
                f" (count_over_time(fastmetal_release_info{{{SCOPE}}}[$__range])))",
                steps=[(None, "blue")],
            ),
        ],
        "Each host": [
            listing(
                "Live releases",
                "The live release of each host.",
                f"fastmetal_release_info{{{SCOPE}}}",
                ["instance", "service", "release"],
                width=8,
            ),
            listing(
                "Last change",
                "Result by host: 1 for success, 0 for failure.",
                f"fastmetal_deploy_success{{{SCOPE}}}",
                ["instance", "service", "action", "release"],
                width=8,
            ),
            listing(
                "Duration of the last change",
                "Duration by host.",
                f"fastmetal_deploy_duration_seconds{{{SCOPE}}}",
                ["instance", "service", "action", "release"],
                unit="s",
                width=8,
            ),
        ],
        "Clients": [
            lines(
                "Requests",
                "Requests per second at the edge.",
                (f"slo:requests:rate5m{{{SCOPE}}}", "{{service}}"),
                unit="reqps",
                width=8,
            ),
            lines(
                "Error ratio",
                "Share of the edge's responses with status 5xx.",
                (f'slo:bad_requests:ratio{{slo="availability",window="5m",{SCOPE}}}', "{{service}}"),
                unit="percentunit",
                width=8,
            ),
            lines(
                "Hosts by release",
                "Number of hosts on which each release is live.",
                (
                    f"count by (service, release) (fastmetal_release_info{{{SCOPE}}})",
                    "{{service}} {{release}}",
                ),
                width=8,
                stacked=True,
            ),
        ],
    },
)
