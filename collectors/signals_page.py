"""The catalogue as a page for people: ``docs/signals.md``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from collectors.presets import presets
from collectors.signals import Layer, Signal, catalogue

_HEAD = """\
# Signals

<!-- Written by `galen signals --markdown`; change `collectors/signals.toml` and write it again. -->

Every number in Galen is a *signal* of this catalogue about an entity. `galen signals` lists them in a
terminal, `--layer gpu` one layer, `--json` for programs.

*Bad* says in which direction a signal is bad. *Possible* are physical limits: what lies beyond counts
in `metric_out_of_range_ratio`; `collectors/signals.toml` gives the source of each. A *deadband* is the
smallest deviation that matters.

A name is a PromQL selector, or arithmetic over selectors; of several the first that a target has wins.
Counters become rates over the time since the last scrape. Ratios of counters and quantiles of histograms
(the 95th, unless the signal says otherwise) cover a sliding window. Numbers after DCGM are field ids:
DCGM renamed fields, and both names are read. Under NVML stand the calls that Galen's collector makes.

## Exporters

| preset | exporter | usual address | recognised by metrics that begin with |
|---|---|---|---|
"""
_ROW = (
    "| signal | unit | kind | bad | possible | deadband | names |\n|---|---|---|---|---|---|---|\n"
)
_TITLES = {
    "dcgm": "DCGM", "node": "node_exporter", "vllm": "vLLM", "triton": "Triton", "tgi": "TGI",
    "kserve": "KServe", "galen": "Galen's service", "process": "any process",
    "blackbox": "blackbox_exporter", "ipmi": "ipmi_exporter", "prometheus": "Prometheus",
}  # fmt: skip


def signals_page() -> str:
    """Return the whole page in Markdown."""
    parts = [_HEAD]
    for preset in presets().values():
        begins = ", ".join(f"`{name}`" for name in preset.detect)
        parts.append(
            f"| `{preset.name}` | {preset.title} | `:{preset.port}{preset.path}` | {begins} |\n"
        )
    order = list(Layer)
    rows = sorted(catalogue().values(), key=lambda one: (order.index(one.layer), one.name))
    for layer, signals in groupby(rows, key=lambda one: one.layer):
        parts += [f"\n## {layer.capitalize() if layer is not Layer.GPU else 'GPU'}\n\n", _ROW]
        parts += [_row(signal) for signal in signals]
    return "".join(parts)


def _row(signal: Signal) -> str:
    cells = (
        f"`{signal.name}`<br>{_escaped(signal.description)}",
        signal.unit,
        _kind(signal),
        signal.bad_direction,
        _possible(signal),
        f"{signal.deadband:g}",
        "<br>".join(_sources(signal)),
    )
    return f"| {' | '.join(cells)} |\n"


def _kind(signal: Signal) -> str:
    return (
        f"{signal.kind} (p{signal.quantile * 100:g})" if signal.kind == "histogram" else signal.kind
    )


def _possible(signal: Signal) -> str:
    if signal.low is None and signal.high is None:
        return ""
    low = "" if signal.low is None else f"{signal.low:g}"
    high = "" if signal.high is None else f"{signal.high:g}"
    return f"{low} to {high}".strip() if high else f"from {low}"


def _sources(signal: Signal) -> Iterator[str]:
    for source, names in signal.names.items():
        numbers = ", ".join(map(str, signal.dcgm_fields)) if source == "dcgm" else ""
        title = f"{_TITLES.get(source, source)} {numbers}".strip()
        yield f"{title}: {_code(names)}"
    if signal.nvml:
        yield f"NVML: {_code(signal.nvml)}"


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{_escaped(name)}`" for name in names)


def _escaped(text: str) -> str:
    # A bar ends a cell even inside code.
    return text.replace("|", "\\|")
