"""The backtest as one HTML page without scripts or addresses: it can be mailed and opened anywhere."""

from __future__ import annotations

from importlib import resources

from jinja2 import Environment

from galen.backtest.charts import moment, timeline_svg, trace_svg
from galen.backtest.findings import Findings

MOST_ALARMS = 500
MOST_SERIES = 30
MOST_PROPOSALS = 20


def render_html(found: Findings) -> str:
    """Return the page; names from the data are escaped, and the browser may load nothing."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["moment"] = moment
    environment.filters["amount"] = _amount
    folder = resources.files("galen.backtest")
    template = environment.from_string(folder.joinpath("page.html.j2").read_text("utf-8"))
    return template.render(
        found=found,
        style=folder.joinpath("page.css").read_text("utf-8"),
        trace_svg=trace_svg,
        timeline=timeline_svg(found),
        most_alarms=MOST_ALARMS,
        most_series=MOST_SERIES,
        most_proposals=MOST_PROPOSALS,
    )


def _amount(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
