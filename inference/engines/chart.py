"""A comparison as a picture: throughput, latency, size and drift of each candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.engines.comparison import ORIGINAL, Comparison
from inference.engines.offline import InputError

_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2")


def write_chart(found: Comparison, path: Path) -> None:
    """Write an HTML page that needs no network.

    Raises:
        InputError: the name ends otherwise, or the file cannot be written.
    """
    if path.suffix.lower() != ".html":
        raise InputError(f"--plot {path}: only .html can be written", fix="Write --plot bench.html")
    figure = draw(found)
    try:
        figure.write_html(path, include_plotlyjs=True, full_html=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def draw(found: Comparison) -> Any:
    """Draw four panels, one colour for each candidate."""
    from plotly.subplots import make_subplots  # noqa: PLC0415 - heavy, for pictures only

    what = "tokens/s" if found.decoder else "items/s"
    titles = (what, "latency p50 ms (p99 above it)", "model MB", "relative drift")
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles)
    names = list(dict.fromkeys((m.variant, m.engine, m.device) for m in found.measurements))
    for number, name in enumerate(names):
        _draw_candidate(figure, found, name, _COLOURS[number % len(_COLOURS)])
    figure.add_hline(y=found.drift_limit, line_dash="dot", row=2, col=2, annotation_text="limit")
    figure.update_xaxes(title_text="batch", row=1)
    best = found.fastest
    chosen = f"; fastest within the limit: {best.variant} on {best.device}" if best else ""
    figure.update_layout(title_text=f"{found.file}{chosen}", barmode="group", height=800)
    return figure


def _draw_candidate(
    figure: Any, found: Comparison, name: tuple[str, str, str], colour: str
) -> None:
    from plotly import graph_objects  # noqa: PLC0415 - as above

    label = " ".join(name)
    rows = [m for m in found.measurements if (m.variant, m.engine, m.device) == name]
    drift = next((d for d in found.drifts if (d.variant, d.engine, d.device) == name), None)
    own = 0.0 if name[0] == ORIGINAL else None
    relative = drift.drift.relative if drift is not None else own
    batches = [str(m.batch) for m in rows]
    common = {"name": label, "legendgroup": label, "marker_color": colour}
    throughput = graph_objects.Bar(x=batches, y=[m.items_per_second for m in rows], **common)
    gaps = [m.p99_milliseconds - m.p50_milliseconds for m in rows]
    latency = graph_objects.Bar(
        x=batches,
        y=[m.p50_milliseconds for m in rows],
        error_y={"type": "data", "array": gaps, "symmetric": False},
        showlegend=False,
        **common,
    )
    size = graph_objects.Bar(x=[label], y=[rows[0].model_bytes / 1e6], showlegend=False, **common)
    away = graph_objects.Bar(x=[label], y=[relative], showlegend=False, **common)
    for panel, (row, column) in (
        (throughput, (1, 1)),
        (latency, (1, 2)),
        (size, (2, 1)),
        (away, (2, 2)),
    ):
        figure.add_trace(panel, row=row, col=column)
