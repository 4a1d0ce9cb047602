"""Do replicas of a model give the same answers?

A canary knows a few right answers. Replicas can be compared on any question: greedy text must be
equal, tensors close. Two voters can only disagree, for nobody knows which one is wrong; from three on
a majority says who is. Different kinds of devices may differ in the last token without being wrong,
so that a disagreement is told and a replica is taken out only when a majority is against it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_log = structlog.get_logger(__name__)

SELF = "self"
"""The name of the replica that asks."""
_MAX_ANSWER_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Question:
    """Something to ask every replica: a text, or the JSON of an inference request with tensors."""

    model: str
    text: str = ""
    task: str = "chat"
    tensors: Mapping[str, Any] | None = None
    tolerance: float = 0.0
    """Largest difference of tensors, absolute below 1 and relative above."""
    max_tokens: int = 64


Answer = str | Mapping[str, Any] | None
"""A text, outputs by name, or None if there was no answer."""


@dataclass(frozen=True, slots=True)
class Vote:
    """What the replicas said to one question: names that agree stand together, most first."""

    camps: tuple[tuple[str, ...], ...]
    silent: tuple[str, ...]
    """Those that did not answer; they have no vote."""

    @property
    def agreed(self) -> bool:
        """Whether all that answered say the same."""
        return len(self.camps) <= 1

    @property
    def outvoted(self) -> tuple[str, ...]:
        """Who is against a majority of at least two; empty where nobody can know."""
        voters = sum(map(len, self.camps))
        if self.agreed or len(self.camps[0]) < 2 or 2 * len(self.camps[0]) <= voters:
            return ()
        return tuple(name for camp in self.camps[1:] for name in camp)


def count(answers: Mapping[str, Answer], tolerance: float = 0.0) -> Vote:
    """Sort answers into camps that agree."""
    camps: list[tuple[Answer, list[str]]] = []
    silent = []
    for name, answer in answers.items():
        if answer is None:
            silent.append(name)
            continue
        for other, names in camps:
            if same(answer, other, tolerance):
                names.append(name)
                break
        else:
            camps.append((answer, [name]))
    ordered = sorted((tuple(names) for _, names in camps), key=len, reverse=True)
    return Vote(tuple(ordered), tuple(silent))


def same(one: Answer, other: Answer, tolerance: float) -> bool:
    """Say whether two answers agree: texts exactly, tensors within the tolerance."""
    if isinstance(one, str) or isinstance(other, str) or one is None or other is None:
        return one == other
    if one.keys() != other.keys():
        return False
    for name, values in one.items():
        first, second = np.asarray(values), np.asarray(other[name])
        if first.shape != second.shape:
            return False
        if first.dtype.kind not in "fiub" or second.dtype.kind not in "fiub":
            if not np.array_equal(first, second):
                return False
        elif not np.allclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True):
            return False
    return True


async def compare_replicas(
    client: httpx.AsyncClient, urls: Sequence[str], questions: Sequence[Question]
) -> list[Vote]:
    """Ask replicas the same questions and return the votes, one a question.

    Args:
        client: With a timeout; a replica that does not answer in time is silent.
        urls: Base URLs, such as ``http://10.0.0.7:8000``.
        questions: What to ask.
    """
    votes = []
    for question in questions:
        answers = await asyncio.gather(*(ask(client, url, question) for url in urls))
        votes.append(count(dict(zip(urls, answers, strict=True)), question.tolerance))
    return votes


async def ask(client: httpx.AsyncClient, url: str, question: Question) -> Answer:
    """Ask one replica, as a probe that counts as no user's request; None without an answer."""
    base = url.rstrip("/")
    headers = {"x-galen-canary": "1", "x-galen-task": question.task}
    try:
        if question.tensors is not None:
            path = f"{base}/v2/models/{question.model}/infer"
            answer = await client.post(path, json=question.tensors, headers=headers)
        else:
            body = {
                "model": question.model,
                "prompt": question.text,
                "max_tokens": question.max_tokens,
            }
            answer = await client.post(f"{base}/v1/completions", json=body, headers=headers)
        if answer.status_code != httpx.codes.OK or len(answer.content) > _MAX_ANSWER_BYTES:
            return None
        if answer.headers.get("x-galen-model", question.model) != question.model:
            return None  # another model stood in; its answer says nothing
        return _read(answer.json(), question)
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        _log.info("replica_silent", url=url, error=repr(error))
        return None


def _read(document: Any, question: Question) -> Answer:
    if question.tensors is None:
        return str(document["choices"][0]["text"])
    return {
        item["name"]: np.asarray(item["data"]).reshape(item["shape"])
        for item in document["outputs"]
    }


@dataclass(slots=True)
class PeerWatch:
    """Compares this replica with its peers at an interval; off without peers."""

    peers: Sequence[str]
    own: Callable[[Question], Awaitable[Answer]]
    questions: Callable[[], Sequence[Question]]
    timeout_seconds: float
    failure_threshold: int
    clock: Callable[[], float]
    disagreements: dict[str, int] = field(default_factory=dict)
    """By peer: how many questions it answered otherwise than this replica, since the start."""
    votes: list[Vote] = field(default_factory=list)
    """Of the newest check."""
    checked_at: float | None = None
    _against: int = 0

    async def run(self, interval_seconds: float) -> None:
        """Compare until cancelled; returns at once without peers."""
        if not self.peers:
            return
        self.disagreements = dict.fromkeys(self.peers, 0)
        async with httpx.AsyncClient(timeout=self.timeout_seconds) as client:
            while True:
                await asyncio.sleep(interval_seconds)
                try:
                    await self.check(client)
                except Exception:  # noqa: BLE001 - it is logged; a comparison must not end the loop
                    _log.exception("consistency_check_failed")

    async def check(self, client: httpx.AsyncClient) -> None:
        """Ask all once."""
        votes = []
        for question in self.questions():
            own = await self.own(question)
            others = await asyncio.gather(*(ask(client, url, question) for url in self.peers))
            answers = {SELF: own, **dict(zip(self.peers, others, strict=True))}
            votes.append(count(answers, question.tolerance))
        self.votes, self.checked_at = votes, self.clock()
        for vote in votes:
            self._take(vote)
        outvoted = any(SELF in vote.outvoted for vote in votes)
        self._against = self._against + 1 if outvoted else 0

    @property
    def outvoted(self) -> str:
        """Why this replica should get no traffic, or nothing: a majority was against it often."""
        if self._against < self.failure_threshold:
            return ""
        return f"a majority of replicas answered otherwise in {self._against} comparisons"

    def describe(self) -> dict[str, Any]:
        """Return what was found, without questions and answers."""
        age = None if self.checked_at is None else self.clock() - self.checked_at
        return {
            "peers": list(self.peers),
            "age_seconds": age,
            "questions": len(self.votes),
            "disagreements": sum(not vote.agreed for vote in self.votes),
            "silent": sorted({name for vote in self.votes for name in vote.silent}),
            "outvoted": sorted({name for vote in self.votes for name in vote.outvoted}),
        }

    def _take(self, vote: Vote) -> None:
        if vote.agreed or SELF in vote.silent:
            return
        mine = next(camp for camp in vote.camps if SELF in camp)
        others = [peer for camp in vote.camps if camp is not mine for peer in camp]
        for peer in others:
            self.disagreements[peer] = self.disagreements.get(peer, 0) + 1
        _log.warning("replicas_disagree", others=others, outvoted=list(vote.outvoted))


class PeerCollector(Collector):
    """Reads a watch at the time of a scrape."""

    def __init__(self, watch: PeerWatch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        """Yield both families; nothing without peers."""
        disagreements = CounterMetricFamily(
            "replica_disagreements",
            "Questions that a peer answered otherwise than this replica",
            labels=["peer"],
        )
        for peer, number in self._watch.disagreements.items():
            disagreements.add_metric([peer], number)
        yield disagreements
        if self._watch.checked_at is not None:
            age = GaugeMetricFamily("replica_check_age_seconds", "Time since the comparison")
            age.add_metric([], self._watch.clock() - self._watch.checked_at)
            yield age
