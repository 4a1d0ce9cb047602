"""Metrics of batching, read from plain counters when somebody scrapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from inference.tensor.dispatch import ROW_BOUNDS, TensorDispatcher

if TYPE_CHECKING:
    from inference.engine_host import EngineHost


def batch_families(hosts: Mapping[str, EngineHost]) -> Iterator[Metric]:
    """Yield what is known of the batches of every tensor model."""
    found = {
        model: host.dispatcher
        for model, host in hosts.items()
        if isinstance(host.dispatcher, TensorDispatcher)
    }
    sizes = HistogramMetricFamily("tensor_batch_rows", "Rows computed together", labels=["model"])
    rows = CounterMetricFamily("tensor_rows", "Rows that were sent to the engine", labels=["model"])
    splits = CounterMetricFamily(
        "tensor_batch_splits", "Batches that failed and were computed in halves", labels=["model"]
    )
    waits = SummaryMetricFamily(
        "tensor_queue_wait_seconds", "From admission to a batch", labels=["model"]
    )
    cost = GaugeMetricFamily(
        "tensor_batch_cost_seconds", "Measured cost of a batch", labels=["model", "part"]
    )
    for model, dispatcher in found.items():
        stats = dispatcher.stats
        bounds = [*map(str, ROW_BOUNDS), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(stats.batches)), strict=True))
        sizes.add_metric([model], buckets, sum_value=stats.rows)
        rows.add_metric([model], stats.rows)
        splits.add_metric([model], stats.splits)
        waits.add_metric([model], count_value=stats.dispatched, sum_value=stats.wait_seconds)
        cost.add_metric([model, "fixed"], dispatcher.cost.fixed_seconds)
        cost.add_metric([model, "row"], dispatcher.cost.row_seconds)
    yield from (sizes, rows, splits, waits, cost)
