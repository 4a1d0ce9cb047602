"""The agent: polls this machine's collectors and pushes what they say, through a spool on disk."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import structlog

from collectors.addresses import shown_url
from collectors.clock import SteadyClock
from collectors.contract import Sample
from collectors.entities import entity
from collectors.poller import Poller
from collectors.registry import build_collectors
from collectors.remote_write import RemoteWriteClient, SpoolSender, encode_write_request
from collectors.settings import CollectorsSettings
from collectors.spool import Spool, SpoolError, SpoolState
from collectors.staleness import EndedSeries

log = structlog.get_logger(__name__)

AGENT_ENTITY = entity("collector", "agent")
SPOOL_FILE = "agent_spool.sqlite"
"""Name of the buffer in the state directory."""
JOB = "galen-agent"
_IDLE_SECONDS = 1.0
_AFTER_FAULT_SECONDS = 5.0
_FLUSH_SECONDS = 5.0
_SILENCE_SECONDS = 60.0


class PushAgent:
    """Polls at an interval; a second thread sends, so that a slow server delays no poll.

    To each poll it adds, on ``collector/agent``, ``galen_agent_polls_total`` (since the start; a number
    that is missing where the series are is a poll that was lost), ``galen_agent_waiting_samples``,
    ``galen_agent_parked_samples`` (refused by the server) and ``galen_agent_dropped_samples_total``
    (lost to a full buffer since it was made, or to a full disk since the start), so that a loss shows
    where the series are. A series that comes no more, and every series at the end, gets a marker of
    staleness.

    Args:
        poller: the collectors.
        spool: what has not been sent yet.
        sender: empties the spool.
        interval_seconds: time between two polls.
        labels: added to every series, such as ``instance``.
        clock: what polls are dated by; by default a :class:`SteadyClock`.
        monotonic: the clock of the interval.
    """

    def __init__(
        self,
        poller: Poller,
        spool: Spool,
        sender: SpoolSender,
        *,
        interval_seconds: float,
        labels: Mapping[str, str],
        clock: Callable[[], float] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._poller = poller
        self._spool = spool
        self._sender = sender
        self._interval_seconds = interval_seconds
        self._labels = labels
        self._clock = clock or SteadyClock()
        self._monotonic = monotonic
        self._arrived = threading.Event()
        self._ended = EndedSeries(max(_SILENCE_SECONDS, 3 * interval_seconds))
        self._polls = 0
        self._lost_samples = 0
        """Samples of polls that could not be written to the spool, such as on a full disk."""

    def poll(self) -> int:
        """Poll once and put what came into the spool; return how many samples that were.

        Raises:
            SpoolError: when the spool cannot be written; the poll is lost then.
        """
        now = self._clock()
        self._polls += 1
        samples = [*self._poller.tick(now).samples, *self._own_samples(now)]
        samples += self._ended.markers(now, samples)
        self._keep(samples)
        return len(samples)

    def run(self, stop: threading.Event) -> None:
        """Poll and send until told to stop; then say that all series end, and send what can be sent."""
        done = threading.Event()
        thread = threading.Thread(target=self._send, args=(done,), name="remote-write", daemon=True)
        thread.start()
        due = self._monotonic()
        while not stop.is_set():
            try:
                self.poll()
            except SpoolError as error:
                log.error("poll_lost", error=str(error))  # noqa: TRY400 - the message is complete
            # Polls keep to their grid; those that a long one has covered are left out.
            late = self._monotonic() - due
            due += self._interval_seconds * (1 + max(0, int(late / self._interval_seconds)))
            stop.wait(max(0.0, due - self._monotonic()))
        if markers := self._ended.end_all(self._clock()):
            with suppress(SpoolError):  # then they are stale after five minutes, as after a crash
                self._keep(markers)
        done.set()
        self._arrived.set()
        thread.join(timeout=_FLUSH_SECONDS)

    def _keep(self, samples: Sequence[Sample]) -> None:
        try:
            self._spool.append(encode_write_request(samples, self._labels), len(samples))
        except SpoolError:
            self._lost_samples += len(samples)
            raise
        self._arrived.set()

    def _send(self, done: threading.Event) -> None:
        while True:
            self._arrived.clear()
            try:
                wait = self._sender.step()
            # A fault of one request must not end the thread, whatever it was; it is in the log.
            except Exception:
                log.exception("remote_write_broke")
                wait = _AFTER_FAULT_SECONDS
            if done.is_set() and wait != 0:
                return
            if wait is None:
                self._arrived.wait(_IDLE_SECONDS)
            elif wait:
                done.wait(wait)

    def _own_samples(self, now_seconds: float) -> Iterator[Sample]:
        state = self._spool.state()
        for signal, value in (
            ("galen_agent_polls_total", self._polls),
            ("galen_agent_waiting_samples", state.waiting_samples),
            ("galen_agent_parked_samples", state.parked_samples),
            ("galen_agent_dropped_samples_total", state.dropped_samples + self._lost_samples),
        ):
            yield Sample(now_seconds, AGENT_ENTITY, signal, float(value))


def run_agent(
    settings: CollectorsSettings,
    *,
    state_dir: Path,
    stop: threading.Event,
    retry_refused: bool = False,
) -> SpoolState:
    """Push what this machine's collectors say until told to stop; return what is left to send.

    Host, GPU and the services of the settings are polled. Prometheus servers are not: what they have
    is where it belongs. Like a scrape, each series has ``job`` and ``instance``, without which two
    machines would write the same series.

    Args:
        settings: the ``[collectors]`` table; ``push.url`` must be set.
        state_dir: where the buffer lies.
        stop: set to stop.
        retry_refused: whether to send again what the server had refused.

    Raises:
        ValueError: when the address is missing or wrong.
        AccessError: when the certificates cannot be used.
        SpoolError: when the buffer cannot be used.
    """
    push = settings.push
    if push.url is None:
        raise ValueError("no address to push to")
    with ExitStack() as stack:
        http = stack.enter_context(httpx.Client(trust_env=False, verify=push.ssl_context()))
        if not push.verify_tls:
            log.warning("tls_not_verified", server=shown_url(push.url))
        client = RemoteWriteClient(
            push.url, http, access=push, deadline_seconds=push.deadline_seconds
        )
        spool = Spool(state_dir / SPOOL_FILE, max_bytes=int(push.spool_megabytes * 1e6))
        stack.callback(spool.close)
        if retry_refused:
            log.info("refused_wait_again", records=spool.unpark())
        sender = SpoolSender(
            spool,
            client,
            batch_samples=push.batch_samples,
            backoff_seconds=(push.shortest_backoff_seconds, push.longest_backoff_seconds),
        )
        collectors = build_collectors(
            settings.model_copy(update={"prometheus": ()}), state_dir=state_dir
        )
        poller = Poller(collectors, budget_seconds=settings.budget_seconds)
        stack.callback(poller.close)
        instance = settings.host_name or socket.gethostname()
        agent = PushAgent(
            poller,
            spool,
            sender,
            interval_seconds=push.interval_seconds,
            labels={"job": JOB, "instance": instance, **push.labels},
        )
        agent.run(stop)
        return spool.state()
