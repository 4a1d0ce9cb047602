"""The bundled inference service, read from its ``/metrics``.

Rates and gauges tell about the time since the last scrape. Ratios and quantiles over the few requests
of one second would be noise, so they tell about a sliding window: the last ``window_seconds`` of
scrapes, or ``wide_window_seconds`` when the short one holds fewer than ``minimum_events`` requests. With
too few even there, they are absent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import httpx

from collectors.addresses import shown_url
from collectors.contract import Collection, CollectorError, Sample, Support
from collectors.entities import entity
from collectors.exposition import Exposition, ExpositionError, ExpositionParser
from collectors.fetch import FetchError, check_media_type, fetch
from collectors.rates import CounterWindow, histogram_quantile
from collectors.reading import TargetReader
from collectors.settings import ReadingSettings
from collectors.signals import Layer, catalogue

ENGINE_STATES: Mapping[str, int] = MappingProxyType(
    {
        "idle": 0,
        "busy": 1,
        "starting": 2,
        "draining": 3,
        "stalled": 4,
        "restarting": 5,
        "failed": 6,
    }
)
"""Codes of ``engine_state``, as the catalogue describes them."""

_MAX_BYTES = 4 * 1024 * 1024
_TOO_MANY = 429
_CLIENT_CLOSED = 499  # nginx' status for a client that left before the answer

Labels = tuple[tuple[str, str], ...]
Values = Iterator[tuple[str, float]]


class _CounterKey(NamedTuple):
    name: str
    labels: Labels


# How the models of one service are put together: the worst engine stands for the service.
_GAUGES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "llm_queue_depth": sum,
    "llm_active_requests": sum,
    "llm_batch_size": sum,
    "llm_slots": sum,
    "engine_up": min,
    "engine_step_age_seconds": max,
    "engine_load_seconds": max,
    "engine_resident_memory_bytes": sum,
    "service_degradation_level": max,
}
# These read 0 while there is no worker or no load has ended yet, which is no measurement.
_ZERO_IS_UNKNOWN = frozenset({"engine_load_seconds", "engine_resident_memory_bytes"})
_COUNTER_SUFFIXES = ("_total", "_bucket", "_sum", "_count")
_AROUND_THE_ENGINE = frozenset({Layer.APPLICATION, Layer.SECURITY})
_LAYERS = ("device", "runtime", "engine", "context", "canary")

# signal -> the histogram and the quantile of it
_QUANTILES: Mapping[str, tuple[str, float]] = {
    "llm_request_latency_seconds": ("llm_request_latency_seconds", 0.95),
    "llm_request_latency_p50_seconds": ("llm_request_latency_seconds", 0.50),
    "llm_request_latency_p99_seconds": ("llm_request_latency_seconds", 0.99),
    "llm_time_to_first_token_seconds": ("llm_time_to_first_token_seconds", 0.95),
    "llm_time_per_output_token_seconds": ("llm_time_per_output_token_seconds", 0.95),
    "llm_queue_wait_seconds": ("llm_queue_wait_seconds", 0.95),
}

# signal -> the counter and the labels that select from it, counted since the last scrape
_EVENTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "engine_restarts": ("engine_restarts_total", {}),
    "engine_crashes": ("engine_restarts_total", {"reason": "crash"}),
    "engine_hang_kills": ("engine_restarts_total", {"reason": "hang"}),
    "engine_planned_restarts": ("engine_restarts_total", {"reason": "planned"}),
    "engine_load_failures": ("engine_load_failures_total", {}),
    "engine_invalid_outputs": ("engine_invalid_outputs_total", {}),
}


class _Increases:
    """Increases of the service's counters over one span of time."""

    def __init__(self, increases: Mapping[_CounterKey, float], seconds: float) -> None:
        self.seconds = seconds
        self._by_name: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        for key, increase in increases.items():
            self._by_name.setdefault(key.name, []).append((dict(key.labels), increase))

    def has(self, name: str) -> bool:
        return name in self._by_name

    def total(self, name: str, **selected: str) -> float:
        wanted = selected.items()
        return sum(
            value for labels, value in self._by_name.get(name, ()) if wanted <= labels.items()
        )

    def by_model(self, name: str) -> dict[str, float]:
        models: dict[str, float] = {}
        for labels, value in self._by_name.get(name, ()):
            model = labels.get("model", "")
            models[model] = models.get(model, 0.0) + value
        return models

    def answered(self, wanted: Callable[[int], bool]) -> float:
        """Requests that finished with a status."""
        return sum(
            value
            for labels, value in self._by_name.get("llm_requests_total", ())
            if wanted(_status(labels))
        )

    def buckets(self, histogram: str) -> dict[float, float]:
        buckets: dict[float, float] = {}
        for labels, increase in self._by_name.get(f"{histogram}_bucket", ()):
            bound = float(labels.get("le", "nan"))
            buckets[bound] = buckets.get(bound, 0.0) + increase
        return buckets

    @property
    def finished(self) -> float:
        """Requests that got an answer; those that the client gave up on (499) got none."""
        return self.answered(lambda status: status != _CLIENT_CLOSED)


class ServiceCollector:
    """Scrapes one service and gives its canonical signals on ``service/<name>``.

    Several models of one service are summed; the worst engine stands for all of them, and the busiest
    for ``engine_busy_ratio`` and ``llm_slot_usage_ratio``.

    Args:
        name: the service's name; the entity is ``service/<name>``.
        base_url: where the service listens, such as ``http://127.0.0.1:8000``.
        client: closed together with the collector.
        deadline_seconds: the longest that one scrape may take.
        window_seconds: the window of ratios and quantiles.
        wide_window_seconds: the window used instead when the first holds too few requests.
        minimum_events: how many requests a ratio or a quantile needs.
        monotonic: a clock that never goes back; rates are taken over its time.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        client: httpx.Client,
        *,
        deadline_seconds: float = 0.6,
        window_seconds: float = 10.0,
        wide_window_seconds: float = 60.0,
        minimum_events: int = 5,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entity = entity("service", name)
        self._name = f"service-{name}"
        self._url = f"{base_url.rstrip('/')}/metrics"
        self._client = client
        self._deadline_seconds = deadline_seconds
        self._window_seconds = window_seconds
        self._wide_window_seconds = wide_window_seconds
        self._minimum_events = minimum_events
        self._monotonic = monotonic
        self._parser = ExpositionParser(max_bytes=_MAX_BYTES)
        self._reader = TargetReader(
            {"service": name},
            ReadingSettings(
                kind="galen",
                window_seconds=max(window_seconds, wide_window_seconds),
                minimum_events=minimum_events,
            ),
        )
        self._counters: CounterWindow[_CounterKey] = CounterWindow(keep_seconds=wide_window_seconds)
        self._versions: dict[str, str] = {}
        self._labels: Mapping[str, str] = {}

    @property
    def name(self) -> str:
        """``service-<name>``."""
        return self._name

    @property
    def deadline_seconds(self) -> float:
        """The longest that one scrape may take."""
        return self._deadline_seconds

    def is_supported(self) -> Support:
        """Always; whether the service is there is for :meth:`collect` to say."""
        return Support(supported=True)

    def collect(self, now_seconds: float) -> Collection:
        """Scrape once.

        Raises:
            CollectorError: when the service does not answer in time, or not with metrics.
        """
        exposition, text = self._scrape()
        at = self._monotonic()
        self._counters.add(at, dict(_counters(exposition)))
        # While a model loads its name is not told; the series keep the one they had.
        self._labels = _model_labels(exposition) or self._labels
        values = dict(self._around_the_engine(text, now_seconds, at))
        values |= dict(self._values(exposition))
        return Collection(
            samples=[
                Sample(now_seconds, self._entity, signal, value, self._labels)
                for signal, value in values.items()
            ],
            notes=[f"{name}: {count} blank" for name, count in exposition.left_out.items()],
        )

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def _around_the_engine(self, text: str, now_seconds: float, at_seconds: float) -> Values:
        """What needs no window of its own: who is refused and why, what is lost, what is quarantined."""
        for sample in self._reader.take(text, now_seconds, at_seconds).samples:
            if catalogue()[sample.signal].layer in _AROUND_THE_ENGINE:
                yield sample.signal, sample.value

    def _scrape(self) -> tuple[Exposition, str]:
        try:
            answer = fetch(
                self._client,
                self._url,
                deadline_seconds=self._deadline_seconds,
                max_bytes=_MAX_BYTES,
                monotonic=self._monotonic,
            )
        except FetchError as error:
            raise CollectorError(
                str(error), fix="check that the service runs and that its URL is right"
            ) from error
        if answer.status != httpx.codes.OK:
            raise CollectorError(f"{shown_url(self._url)} answered {answer.status}")
        try:
            text = answer.body.decode("utf-8", errors="replace")
            open_metrics = check_media_type(answer.content_type)
            return self._parser.parse(text, open_metrics=open_metrics), text
        except (ExpositionError, FetchError) as error:
            raise CollectorError(f"{shown_url(self._url)}: {error}") from error

    def _values(self, exposition: Exposition) -> Values:
        yield from _gauges(exposition)
        yield from self._version_change(exposition)
        step = self._increases(None)
        if step.seconds > 0:
            yield from _rates(step)
            yield from self._windowed()

    def _increases(self, window_seconds: float | None) -> _Increases:
        return _Increases(
            self._counters.increases(window_seconds), self._counters.span_seconds(window_seconds)
        )

    def _windowed(self) -> Values:
        windows = (
            self._increases(self._window_seconds),
            self._increases(self._wide_window_seconds),
        )
        yield from self._ratios(windows)
        for signal, (histogram, quantile) in _QUANTILES.items():
            value = histogram_quantile(quantile, self._observed(windows, histogram))
            if value is not None:
                yield signal, value
        yield from _engine_means(windows[0])
        yield from _token_means(self._first_with(windows, lambda w: w.answered(_is_success)))

    def _observed(self, windows: Sequence[_Increases], histogram: str) -> Mapping[float, float]:
        count = f"{histogram}_count"
        return self._first_with(windows, lambda w: w.total(count)).buckets(histogram)

    def _first_with(
        self, windows: Sequence[_Increases], events: Callable[[_Increases], float]
    ) -> _Increases:
        for window in windows:
            if events(window) >= self._minimum_events:
                return window
        return _Increases({}, 0.0)

    def _ratios(self, windows: Sequence[_Increases]) -> Values:
        if self._nothing_comes_back(windows[0]):
            yield "llm_error_ratio", 1.0
            return
        window = self._first_with(windows, lambda w: w.finished)
        finished = window.finished
        if finished <= 0:
            return
        yield "llm_error_ratio", window.answered(lambda status: status >= 500) / finished
        wrong = window.answered(lambda status: 400 <= status < 499 and status != _TOO_MANY)
        yield "llm_client_error_ratio", wrong / finished
        shed = (
            window.total("llm_requests_rejected_total")
            if window.has("llm_requests_rejected_total")
            else window.answered(lambda status: status == _TOO_MANY)
        )
        yield "llm_rejected_ratio", min(1.0, shed / finished)
        cancelled = window.total("llm_requests_cancelled_total")
        yield "llm_cancelled_ratio", cancelled / (finished + cancelled)

    def _nothing_comes_back(self, window: _Increases) -> bool:
        # Requests went in for a whole window and neither an answer nor one token came out. That is a
        # failing service, although there is no finished request to count as failed.
        return (
            window.seconds >= 0.8 * self._window_seconds
            and window.total("llm_requests_received_total") >= self._minimum_events
            and window.total("llm_requests_total") == 0
            and window.total("llm_tokens_processed_total") == 0
        )

    def _version_change(self, exposition: Exposition) -> Values:
        found = {
            sample.labels.get("model", ""): sample.labels.get("version", "")
            for sample in exposition.named("model_info")
        }
        if not found:
            return
        changed = any(
            self._versions.get(model, version) != version for model, version in found.items()
        )
        # A model that is away while it loads keeps its last version, so its return is compared.
        self._versions.update(found)
        yield "model_version_change", float(changed)


def _counters(exposition: Exposition) -> Iterator[tuple[_CounterKey, float]]:
    for sample in exposition.samples():
        if sample.name.endswith(_COUNTER_SUFFIXES):
            yield _CounterKey(sample.name, tuple(sample.labels.items())), sample.value


def _model_labels(exposition: Exposition) -> Mapping[str, str]:
    models = {sample.labels.get("model", "") for sample in exposition.named("model_info")}
    return {"model": models.pop()} if len(models) == 1 else {}


def _gauges(exposition: Exposition) -> Values:
    for name, together in _GAUGES.items():
        values = [sample.value for sample in exposition.named(name)]
        if values and (any(values) or name not in _ZERO_IS_UNKNOWN):
            yield name, together(values)
    slots = _by_model(exposition, "llm_slots")
    used = _by_model(exposition, "llm_batch_size")
    usage = [min(1.0, used[model] / slots[model]) for model in used if slots.get(model, 0) > 0]
    if usage:
        yield "llm_slot_usage_ratio", max(usage)
    states = [
        ENGINE_STATES[sample.labels["state"]]
        for sample in exposition.named("engine_state")
        if sample.value == 1 and sample.labels.get("state") in ENGINE_STATES
    ]
    if states:
        yield "engine_state", float(max(states))
    for sample in exposition.named("health_status"):
        layer = sample.labels.get("layer")
        if layer in _LAYERS:
            yield f"health_{layer}_ok", sample.value


def _by_model(exposition: Exposition, name: str) -> dict[str, float]:
    return {sample.labels.get("model", ""): sample.value for sample in exposition.named(name)}


def _rates(step: _Increases) -> Values:
    seconds = step.seconds
    yield "llm_requests_per_second", step.total("llm_requests_received_total") / seconds
    completion = step.total("llm_tokens_processed_total", type="completion")
    yield "llm_tokens_per_second", completion / seconds
    steps = step.total("engine_steps_total")
    yield "engine_steps_per_second", steps / seconds
    if steps > 0 and step.has("engine_busy_seconds_total"):
        # Per scrape: over a window the many quick steps of before would hide the few slow ones of now.
        yield "engine_step_seconds", step.total("engine_busy_seconds_total") / steps
    busy = step.by_model("engine_busy_seconds_total")
    if busy:
        # The busiest engine: an idle fallback beside it must not make it look half idle.
        yield "engine_busy_ratio", min(1.0, max(busy.values()) / seconds)
    if step.has("engine_cpu_seconds_total"):
        yield "engine_cpu_percent", 100 * step.total("engine_cpu_seconds_total") / seconds
    for signal, (counter, selected) in _EVENTS.items():
        yield signal, step.total(counter, **selected)


def _engine_means(window: _Increases) -> Values:
    queries = window.total("llm_cache_queries_total")
    if queries > 0:
        yield "llm_cache_hit_ratio", min(1.0, window.total("llm_cache_hits_total") / queries)


def _token_means(window: _Increases) -> Values:
    answered = window.answered(_is_success)
    if answered > 0:
        prompt = window.total("llm_tokens_processed_total", type="prompt")
        output = window.total("llm_tokens_processed_total", type="completion")
        yield "llm_prompt_tokens_mean", prompt / answered
        yield "llm_output_tokens_mean", output / answered


def _is_success(status: int) -> bool:
    return 200 <= status < 300


def _status(labels: Mapping[str, str]) -> int:
    status = labels.get("status", "")
    return int(status) if status.isascii() and status.isdigit() else 0
