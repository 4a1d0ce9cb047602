"""Grafana dashboards as plain data: panels, rows and variables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Grafana 12. Older ones say that the dashboard is newer and show it; newer ones migrate it.
SCHEMA_VERSION = 41
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24


@dataclass(frozen=True, slots=True)
class Query:
    """One expression with its legend, which is a template of Grafana."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """From this value on, this colour."""

    value: float
    colour: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. ``unit`` is an id of Grafana (``percent``, ``s``, ``bytes``)."""

    title: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    low: float | None = None
    high: float | None = None
    steps: Sequence[Step] = ()
    description: str = ""

    def document(self, number: int, x: int, y: int) -> dict[str, Any]:
        """Return it as Grafana reads it."""
        instant = self.kind in {"stat", "table"}
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        steps += [{"color": step.colour, "value": step.value} for step in self.steps]
        limits = {"min": self.low, "max": self.high}
        defaults: dict[str, Any] = {
            "unit": self.unit,
            "thresholds": {"mode": "absolute", "steps": steps},
            **{name: value for name, value in limits.items() if value is not None},
        }
        if self.kind == "timeseries":
            # A gap is a gap: nobody knows what was there.
            defaults["custom"] = {"spanNulls": False, "fillOpacity": 8, "showPoints": "never"}
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": _DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": _OPTIONS.get(self.kind, {}),
            "targets": [
                {
                    "refId": chr(ord("A") + place),
                    "datasource": _DATASOURCE,
                    "expr": query.expr,
                    "legendFormat": query.legend,
                    "instant": instant,
                    "range": not instant,
                    **({"format": "table"} if self.kind == "table" else {}),
                }
                for place, query in enumerate(self.queries)
            ],
        }


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading, from left to right."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of the dashboard, from the values of a label."""

    name: str
    label: str
    query: str
    """``label_values(metric, label)``."""

    def document(self) -> dict[str, Any]:
        """Return it as Grafana reads it."""
        return {
            "name": self.name,
            "label": self.label,
            "type": "query",
            "datasource": _DATASOURCE,
            "definition": self.query,
            "query": {"query": self.query, "refId": self.name},
            "refresh": 2,
            "sort": 1,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A whole dashboard; ``uid`` keeps links to it alive."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()

    def document(self) -> dict[str, Any]:
        """Return it as Grafana imports it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["galen"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "timezone": "browser",
            "templating": {
                "list": [
                    {
                        "name": "datasource", "label": "Data source", "type": "datasource",
                        "query": "prometheus", "refresh": 1, "current": {},
                    },
                    *(variable.document() for variable in self.variables),
                ]
            },
            "annotations": {"list": []},
            "links": [
                {
                    "type": "dashboards", "title": "Galen", "tags": ["galen"],
                    "asDropdown": True, "includeVars": True, "keepTime": True,
                }
            ],
            "panels": self._panels(),
        }  # fmt: skip

    def _panels(self) -> list[dict[str, Any]]:
        panels: list[dict[str, Any]] = []
        y = 0
        for row in self.rows:
            panels.append(
                {
                    "id": len(panels) + 1, "type": "row", "title": row.title, "collapsed": False,
                    "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1}, "panels": [],
                }
            )  # fmt: skip
            y, x, tallest = y + 1, 0, 0
            for panel in row.panels:
                if x + panel.width > _COLUMNS:
                    x, y, tallest = 0, y + tallest, 0
                panels.append(panel.document(len(panels) + 1, x, y))
                x, tallest = x + panel.width, max(tallest, panel.height)
            y += tallest
        return panels


_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "none",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
    },
    "table": {"showHeader": True},
}
