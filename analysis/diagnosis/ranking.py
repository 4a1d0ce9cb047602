"""Ranking: log-odds of each cause from its prior and the evidence, and from those a confidence.

For a cause c and an observation e with strength s, P(e|c) = p and P(e|background) = q, the weight is
``s * log(p / q) + (1 - s) * log((1 - p) / (1 - q))``, capped. All causes share q, so that the sums of
different causes compare although each names its own observations only. Observations of a group move
together, so each further one counts less (``group_decay``). See docs/diagnosis.md for the whole recipe.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from analysis.detection.contract import Detections
from analysis.diagnosis.causes import Cause, CauseCatalogue, Role, catalogue
from analysis.diagnosis.evidence import EvidenceReader, Observed, earliest_symptom, to_evidence
from analysis.diagnosis.settings import DiagnosisSettings
from analysis.findings import Evidence, Finding, Hypothesis, Severity, Verdict
from analysis.linkbook import LinkBook
from analysis.topology import Topology
from collectors.entities import FLEET, kind_of
from collectors.links import Link, Relation

_MAX_NORMAL_REASONS = 3
"""How many "this is as it should be" reasons are listed; more would bury what matters."""


class Diagnosis(Finding):
    """What a set of anomalies means."""

    time_seconds: float
    verdict: Verdict
    hypotheses: tuple[Hypothesis, ...]
    """The most probable first."""
    margin: float
    """Confidence of the first less that of the second."""
    severity: Severity
    min_duration_seconds: float = 0.0
    """How long the leading cause wants the anomalies to last before anybody is told."""

    @property
    def leading(self) -> Hypothesis:
        """Return the hypothesis that ranks first."""
        return self.hypotheses[0]


@dataclass(slots=True)
class _Item:
    """One observation's part in one cause's score."""

    observed: Observed
    weight: float
    expected: bool


@dataclass(slots=True)
class _Scored:
    """One cause on one entity."""

    cause: Cause
    entity: str
    log_odds: float
    items: list[_Item] = field(default_factory=list)
    unmeasured: tuple[str, ...] = ()


class Diagnoser:
    """Ranks the causes of the catalogue. Holds no state between calls.

    Args:
        settings: how evidence is weighed.
        causes: the catalogue; the bundled one when left out.
        links: what the collectors say of where things run; nothing when left out.
    """

    def __init__(
        self,
        settings: DiagnosisSettings,
        causes: CauseCatalogue | None = None,
        links: LinkBook | None = None,
    ) -> None:
        self._settings = settings
        self.causes = causes or catalogue()
        self._links = links or LinkBook()
        self._configured = [
            Link(name, Relation.RUNS_ON, place)
            for name, places in settings.runs_on.items()
            for place in places
        ]
        self._topology = Topology(())
        self._topology_links: frozenset[Link] = frozenset()

    def topology(self, entities: Collection[str]) -> Topology:
        """Return the relations among entities; built anew only when entities or links change."""
        links = self._links.links
        if self._topology.entities != frozenset(entities) or self._topology_links is not links:
            self._topology = Topology(
                entities, self._settings.service_hosts, [*links, *self._configured]
            )
            self._topology_links = links
        return self._topology

    def diagnose(
        self,
        now_seconds: float,
        detections: Detections,
        scope: Collection[str],
        *,
        explained_by: str | None = None,
    ) -> Diagnosis:
        """Explain what is seen on a set of entities.

        Args:
            now_seconds: the time of the tick.
            detections: every series' state; those outside the scope only serve as relatives.
            scope: the entities that a cause may live on.
            explained_by: a cause that is known already. It does not compete, and what it explains
                counts neither for nor against another: what is left is a second fault or nothing.

        Returns:
            At least five hypotheses where the catalogue has as many causes for the scope.
        """
        topology = self.topology({key.entity for key in detections.states})
        near = {*scope, *(other for name in scope for other in topology.related(name))}
        states = {key: detections.states[key] for key in detections.states if key.entity in near}
        reader = EvidenceReader(self._settings, self.causes, topology, states)
        known = self.causes.causes.get(explained_by or "")
        explained = frozenset(known.expects if known is not None else ())
        overall = _without(reader.about_all(scope), explained)
        answers = {entity: _without(reader.about(entity), explained) for entity in sorted(scope)}
        first_symptom = earliest_symptom(overall.values())
        busiest = _busiest_entity(detections, scope)
        best: list[_Scored] = []
        for cause in self.causes.causes.values():
            if cause is known:
                continue
            places = [
                (entity, answer) for entity, answer in answers.items() if _lives_on(cause, entity)
            ]
            if cause.entity_kind == "any":
                places = [(busiest, overall)]
            scored = [
                self.score(cause, answer, entity=entity, first_symptom=first_symptom)
                for entity, answer in places
            ]
            best += sorted(scored, key=lambda each: -each.log_odds)[:1]
        simulated = {each.entity for each in detections.anomalies if each.simulated}
        return self._conclude(now_seconds, best, overall, simulated)

    def score(
        self,
        cause: Cause,
        answers: Mapping[str, Observed],
        *,
        entity: str = FLEET,
        first_symptom: float | None = None,
    ) -> _Scored:
        """Weigh the answers for one cause. More of what it expects never lowers its log-odds."""
        raw = self._raw_items(cause, answers, first_symptom)
        gains = [item for item in raw if item.weight > 0 and item.expected]
        losses = [item for item in raw if item.weight <= 0]
        normal = [item for item in raw if item.weight > 0 and not item.expected]
        for items in (gains, losses, normal):
            self._discount_groups(items)
        self._cap_total(normal, self._settings.absent_counter_cap_nats)
        penalty, unmeasured = self._requirement_penalty(cause, answers, raw)
        total = self.causes.log_prior(cause.name) - penalty + sum(item.weight for item in raw)
        return _Scored(cause, entity, total, raw, unmeasured)

    def _raw_items(
        self, cause: Cause, answers: Mapping[str, Observed], first_symptom: float | None
    ) -> list[_Item]:
        items = []
        for table, expected in ((cause.expects, True), (cause.counters, False)):
            for name, probability in table.items():
                observed = answers[name]
                if observed.strength is None:
                    continue
                weight = _log_ratio(observed, probability)
                cap = self._settings.item_cap_nats
                weight = min(cap, max(-cap, weight))
                if expected and weight > 0:
                    weight *= self._onset_share(observed, first_symptom)
                items.append(_Item(observed, weight, expected))
        return items

    def _onset_share(self, observed: Observed, first_symptom: float | None) -> float:
        # A cause changes no later than what it causes. Softly, because the scrape period limits what
        # can be told: a change inside the tolerance is simultaneous.
        state = observed.state
        if observed.observation.role is not Role.INTERNAL or first_symptom is None:
            return 1.0
        if state is None or state.onset_seconds is None:
            return 1.0
        late = state.onset_seconds - first_symptom - self._settings.onset_tolerance_seconds
        share = math.exp(-max(0.0, late) / self._settings.onset_decay_seconds)
        return max(self._settings.onset_floor, share)

    def _discount_groups(self, items: list[_Item]) -> None:
        rank: dict[str, int] = {}
        for item in sorted(items, key=lambda each: -abs(each.weight)):
            group = item.observed.observation.group
            item.weight *= self._settings.group_decay ** rank.get(group, 0)
            rank[group] = rank.get(group, 0) + 1

    @staticmethod
    def _cap_total(items: Sequence[_Item], cap: float) -> None:
        total = sum(item.weight for item in items)
        if total > cap:
            for item in items:
                item.weight *= cap / total

    def _requirement_penalty(
        self, cause: Cause, answers: Mapping[str, Observed], items: Sequence[_Item]
    ) -> tuple[float, tuple[str, ...]]:
        """Charge each required line that is not there to its observation, so that people see it.

        Returns:
            What no observation can carry, because nothing measures it, and the labels of those.
        """
        by_name = {item.observed.observation.name: item for item in items}
        penalty, unmeasured = 0.0, []
        for line in cause.requirements:
            known = [answers[name] for name in line if answers[name].strength is not None]
            if not known:
                penalty += self._settings.unverifiable_nats
                unmeasured.append(answers[line[0]].observation.label)
                continue
            strongest = max(known, key=lambda each: each.strength or 0.0)
            missing = 1.0 - min(1.0, (strongest.strength or 0.0) / 0.5)
            charged = by_name[strongest.observation.name]
            charged.weight -= missing * self._settings.missing_required_nats
        return penalty, tuple(unmeasured)

    def _conclude(
        self,
        now_seconds: float,
        scored: Sequence[_Scored],
        overall: Mapping[str, Observed],
        simulated: Collection[str],
    ) -> Diagnosis:
        ranked = sorted(scored, key=lambda each: (-each.log_odds, each.cause.name))
        confidences = _softmax([each.log_odds / self._settings.temperature for each in ranked])
        kept = ranked[: self._settings.max_hypotheses]
        hypotheses = tuple(
            self._hypothesis(rank, each, confidence, simulated)
            for rank, (each, confidence) in enumerate(zip(kept, confidences, strict=False), start=1)
        )
        leading = ranked[0].cause
        verdict = leading.verdict
        if verdict is Verdict.FAULT and confidences[0] < self._settings.min_confidence:
            verdict = Verdict.UNKNOWN
        outage = any(each.seen and each.observation.outage for each in overall.values())
        return Diagnosis(
            time_seconds=now_seconds,
            verdict=verdict,
            hypotheses=hypotheses,
            margin=confidences[0] - (confidences[1] if len(confidences) > 1 else 0.0),
            severity=Severity.CRITICAL if outage else leading.severity,
            min_duration_seconds=leading.min_duration_seconds,
        )

    def _hypothesis(
        self, rank: int, scored: _Scored, confidence: float, simulated: Collection[str]
    ) -> Hypothesis:
        cause, least = scored.cause, self._settings.listed_weight_nats
        named = [item for item in scored.items if abs(item.weight) >= least]
        for_it = [item for item in named if item.weight > 0]
        seen = sorted((i for i in for_it if i.observed.seen), key=lambda i: -i.weight)
        normal = sorted((i for i in for_it if not i.observed.seen), key=lambda i: -i.weight)
        against = sorted((i for i in named if i.weight < 0), key=lambda i: i.weight)
        next_check = cause.next_check
        if scored.unmeasured:
            next_check += f" Nothing measures now: {', '.join(scored.unmeasured)}."
        return Hypothesis(
            rank=rank,
            cause=cause.name,
            title=cause.title,
            entity=scored.entity,
            confidence=confidence,
            log_odds=scored.log_odds,
            evidence=_records([*seen, *normal[:_MAX_NORMAL_REASONS]], simulated),
            against=_records(against, simulated),
            action=cause.remedies[0] if cause.remedies else None,
            remedies=cause.remedies,
            next_check=next_check,
        )


def _lives_on(cause: Cause, entity: str) -> bool:
    """Say whether an entity is of a cause's kind; what can befall a service can befall its replica."""
    kind = kind_of(entity)
    return kind == cause.entity_kind or (kind == "replica" and cause.entity_kind == "service")


def _records(items: Sequence[_Item], simulated: Collection[str]) -> tuple[Evidence, ...]:
    return tuple(
        to_evidence(
            item.observed,
            item.weight,
            expected=item.expected,
            simulated=item.observed.state is not None
            and item.observed.state.key.entity in simulated,
        )
        for item in items
    )


def _without(answers: dict[str, Observed], explained: Collection[str]) -> dict[str, Observed]:
    return {
        name: Observed(answer.observation, None) if name in explained else answer
        for name, answer in answers.items()
    }


def _log_ratio(observed: Observed, probability: float) -> float:
    strength = observed.strength or 0.0
    background = observed.observation.background
    there = math.log(probability / background)
    not_there = math.log((1 - probability) / (1 - background))
    return strength * there + (1 - strength) * not_there


def _softmax(values: Sequence[float]) -> list[float]:
    highest = max(values)
    powers = [math.exp(value - highest) for value in values]
    total = sum(powers)
    return [power / total for power in powers]


def _busiest_entity(detections: Detections, scope: Collection[str]) -> str:
    active = [each for each in detections.anomalies if each.entity in scope]
    if active:
        return max(active, key=lambda each: (each.score, each.entity)).entity
    return min(scope, default=FLEET)
