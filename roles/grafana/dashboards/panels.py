"""The kinds of panels in the dashboards, and corrections of what Grafana's builder generates."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as words
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    Panel,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Query = tuple[str, str]  # PromQL, and the legend format of its series
Steps = Sequence[tuple[float | None, str]]  # lowest value (None for the first step) and colour
PROMETHEUS = DataSourceRef(type_val="prometheus", uid="prometheus")
GRID = 24
TAG = "fastmetal"


def worse_above(warning: float, bad: float) -> Steps:
    """Return the steps of a value that should be low."""
    return [(None, "green"), (warning, "orange"), (bad, "red")]


def worse_below(warning: float, bad: float) -> Steps:
    """Return the steps of a value that should be high."""
    return [(None, "red"), (bad, "orange"), (warning, "green")]


def fill(
    panel: Any, title: str, text: str, queries: Sequence[Query], width: int, height: int, **how: Any
) -> Any:
    """Set the properties that all kinds of panels have, and return the panel."""
    panel.title(title).description(text).datasource(PROMETHEUS).span(width).height(height)
    for expr, legend in queries:
        query = prometheus.Dataquery().expr(expr).legend_format(legend).datasource(PROMETHEUS)
        query.format(how.get("format", PromQueryFormat.TIME_SERIES))
        panel.with_target(query.instant() if how.get("instant") else query.range())
    return panel


def colours(steps: Steps) -> dashboards.ThresholdsConfig:
    """Return the steps as thresholds of a panel."""
    config = dashboards.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE)
    return config.steps([Threshold(value=value, color=colour) for value, colour in steps])


def number(title: str, text: str, expr: str, *, unit: str = "short", steps: Steps, legend: str = "") -> Any:
    """Return a panel with the latest value as a large number."""
    panel = fill(stat.Panel(), title, text, [(expr, legend)], 4, 4, instant=True)
    panel.unit(unit).thresholds(colours(steps))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.color_mode(words.BigValueColorMode.VALUE).graph_mode(words.BigValueGraphMode.NONE)


def truth(title: str, text: str, expr: str) -> Any:
    """Return a panel that shows "yes" for 1 and "no" for 0."""
    panel = number(title, text, expr, steps=worse_below(1, 0.5))
    answers = {"1": ValueMappingResult(text="yes"), "0": ValueMappingResult(text="no")}
    return panel.mappings([ValueMap(options=answers)])


def lines(
    title: str, text: str, *queries: Query, unit: str = "short", width: int = 12, stacked: bool = False
) -> Any:
    """Return a graph over time; stacked lines add up."""
    panel = fill(timeseries.Panel(), title, text, queries, width, 8)
    panel.unit(unit).min(0).fill_opacity(10)
    panel.tooltip(
        common.VizTooltipOptions().mode(words.TooltipDisplayMode.MULTI).sort(words.SortOrder.DESCENDING)
    )
    panel.legend(common.VizLegendOptions().display_mode(words.LegendDisplayMode.LIST).show_legend(True))
    if stacked:
        panel.stacking(common.StackingConfig().mode(words.StackingMode.NORMAL)).fill_opacity(40)
    return panel


def heat(title: str, text: str, expr: str) -> Any:
    """Return a heat map of a histogram's buckets."""
    panel = fill(heatmap.Panel(), title, text, [(expr, "{{le}}")], 12, 8, format=PromQueryFormat.HEATMAP)
    return panel.y_axis(heatmap.YAxisConfig().unit("s"))


def listing(
    title: str, text: str, expr: str, columns: Sequence[str], *, unit: str = "short", width: int = 24
) -> Any:
    """Return a table of the current series, with a column for each label and one for the value."""
    panel = fill(
        table.Panel(), title, text, [(expr, "")], width, 8, format=PromQueryFormat.TABLE, instant=True
    )
    shown = [*columns, "Value"]
    panel.with_transformation(
        DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"names": shown}})
    )
    order = {name: index for index, name in enumerate(shown)}
    panel.with_transformation(DataTransformerConfig(id_val="organize", options={"indexByName": order}))
    return panel.unit(unit)


def choice(name: str, label: str, metric: str, value: str) -> Any:
    """Return a dashboard variable that selects all, one or several values of a metric's label."""
    variable = dashboards.QueryVariable(name).label(label).datasource(PROMETHEUS)
    variable.query(f"label_values({metric}, {value})").refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    variable.sort(VariableSort.ALPHABETICAL_ASC).multi(True).include_all(True).all_value(".+")
    return variable.current(VariableOption(selected=True, text="All", value="$__all"))


def service_choice() -> Any:
    """Return the dashboard variable that selects services; each has figures of the edge."""
    return choice("service", "Service", "edge_requests_total", "service")


@dataclass
class Board:
    """A dashboard: rows of panels, variables and events."""

    uid: str
    title: str
    text: str
    rows: Mapping[str, Sequence[Builder[Panel]]]
    variables: Sequence[Any] = ()
    since: str = "now-1h"
    # Events drawn over all panels: {name: PromQL whose value is a Unix time in seconds}.
    events: Mapping[str, str] = field(default_factory=dict)

    def render(self) -> str:
        """Return the dashboard's JSON."""
        board = dashboards.Dashboard(self.title).uid(f"fastmetal-{self.uid}").description(self.text)
        board.tags([TAG]).readonly().time(self.since, "now").refresh("30s").timezone("browser")
        board.tooltip(DashboardCursorSync.CROSSHAIR)
        link = dashboards.DashboardLink("Dashboards").type(DashboardLinkType.DASHBOARDS).tags([TAG])
        board.link(link.as_dropdown(True).keep_time(True))
        for variable in self.variables:
            board.with_variable(variable)
        for name, expr in self.events.items():
            annotation = dashboards.AnnotationQuery().name(name).datasource(PROMETHEUS)
            board.annotation(annotation.enable(True).icon_color("blue").expr(f"{expr} * 1000"))
        for title, panels in self.rows.items():
            board.with_row(dashboards.Row(title))
            for panel in panels:
                board.with_panel(panel)
        content: dict[str, Any] = json.loads(json.dumps(board.build(), cls=JSONEncoder))
        complete(content)
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def complete(content: dict[str, Any]) -> None:
    """Add the IDs that the builder leaves out, and drop fields that this version of Grafana does not have."""
    for number_, panel in enumerate(content["panels"], 1):
        panel["id"] = number_
        for letter, target in zip(string.ascii_uppercase, panel.get("targets", []), strict=False):
            target["refId"] = letter
        place = panel["gridPos"]
        if place["x"] + place["w"] > GRID:
            raise ValueError(f"{content['uid']}: {panel['title']} does not fit into its line")
    for variable in content["templating"].get("list", []):
        # Only variables of type interval have these in the published schema of this version.
        for name in ("auto", "auto_count", "auto_min"):
            variable.pop(name, None)
    for annotation in content["annotations"].get("list", []):
        annotation |= {"step": "15s", "useValueForTime": True, "titleFormat": annotation["name"]}
        annotation["textFormat"] = "{{action}} {{service}} {{release}} {{instance}}"
    ids = [panel["id"] for panel in content["panels"]]
    references = [[target["refId"] for target in panel.get("targets", [])] for panel in content["panels"]]
    if len(set(ids)) != len(ids) or any(len(set(names)) != len(names) for names in references):
        raise ValueError(f"{content['uid']}: an ID is used twice")
