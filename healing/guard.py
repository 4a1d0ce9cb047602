"""The guard: whether an action may be taken now, and why not, as a reason and in words.

It decides and does nothing. What it looks at is the policy, the ledger and the settings; the order of
its checks is the order in which a person would want to hear the reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from analysis.findings import Incident, IncidentState
from collectors.entities import kind_of
from healing.actions import Action, ActionState, Mode
from healing.ledger import UNDER_WAY, Ledger, related
from healing.policy import Policy, Remedy
from healing.settings import HealingSettings

_HOUR_SECONDS = 3600.0
_ORDER = (Mode.OFF, Mode.DRY_RUN, Mode.APPROVE, Mode.AUTO)


class GuardReason(StrEnum):
    """Why the guard decided as it did."""

    ALLOWED = "allowed"
    INCIDENT_CLOSED = "incident_closed"
    KILL_SWITCH = "kill_switch"
    MODE_OFF = "mode_off"
    OWN_DOING = "own_doing"
    """What is seen is the effect of an action that Galen took and that still stands."""
    NO_EXECUTOR = "no_executor"
    """Nothing here can act on the entity."""
    NOT_ASKED_FOR = "not_asked_for"
    """Neither driver nor catalogue asks for it here: it would be a guess."""
    NO_BASELINE = "no_baseline"
    """A parameter follows from how things were before, and that is not known."""
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    REPEATED = "repeated"
    """It was needed too often of late: it does not cure."""
    COOLDOWN = "cooldown"
    ENTITY_BUSY = "entity_busy"
    RATE_LIMITED = "rate_limited"
    BLAST_RADIUS = "blast_radius"
    STALE_DATA = "stale_data"
    """The evidence is old or its collector is down: nobody acts blind."""
    DRY_RUN = "dry_run"
    UNVERIFIABLE = "unverifiable"
    """Nothing measures whether it would help."""
    LOW_CONFIDENCE = "low_confidence"
    NEEDS_APPROVAL = "needs_approval"


class Course(StrEnum):
    """What to do about a decision."""

    ACT = "act"
    PROPOSE = "propose"
    REHEARSE = "rehearse"
    """Say what would be done, and leave it."""
    WAIT = "wait"
    """The obstacle passes by itself."""
    SKIP = "skip"
    """It does not: take the next rung."""
    STOP = "stop"
    """Nothing more is to be done."""


_COURSES = {
    GuardReason.ALLOWED: Course.ACT,
    GuardReason.INCIDENT_CLOSED: Course.STOP,
    GuardReason.KILL_SWITCH: Course.WAIT,
    GuardReason.MODE_OFF: Course.SKIP,
    GuardReason.OWN_DOING: Course.STOP,
    GuardReason.NO_EXECUTOR: Course.SKIP,
    GuardReason.NOT_ASKED_FOR: Course.SKIP,
    GuardReason.NO_BASELINE: Course.SKIP,
    GuardReason.ATTEMPTS_EXHAUSTED: Course.SKIP,
    GuardReason.REPEATED: Course.SKIP,
    GuardReason.COOLDOWN: Course.WAIT,
    GuardReason.ENTITY_BUSY: Course.WAIT,
    GuardReason.RATE_LIMITED: Course.WAIT,
    GuardReason.BLAST_RADIUS: Course.WAIT,
    GuardReason.STALE_DATA: Course.WAIT,
    GuardReason.DRY_RUN: Course.REHEARSE,
    GuardReason.UNVERIFIABLE: Course.PROPOSE,
    GuardReason.LOW_CONFIDENCE: Course.PROPOSE,
    GuardReason.NEEDS_APPROVAL: Course.PROPOSE,
}


@dataclass(frozen=True, slots=True)
class Decision:
    """What the guard says: a reason to branch on, and words to read."""

    reason: GuardReason
    words: str = ""

    @property
    def course(self) -> Course:
        """What follows from the reason."""
        return _COURSES[self.reason]


@dataclass(frozen=True, slots=True)
class Request:
    """One action that healing would like to take."""

    incident: Incident
    remedy: Remedy
    entity: str | None
    """What would be acted on; None where no executor can."""
    confidence: float
    peers: int = 1
    """How many entities of this kind can be acted on."""
    not_asked_for: str = ""
    """What would have to be measured for it, in words; empty when it is."""
    missing_parameter: str = ""
    stale: str = ""
    """What of the evidence is too old, in words."""
    blind_spots: Sequence[str] = ()
    """Checks of the proof that nothing measures."""
    approved: bool = False
    """Whether a person said yes to exactly this."""
    own_action_id: str = ""
    """The action's own row in the ledger, where it has one already."""


class Guard:
    """Judges requests. Holds no state of its own: a restart forgets nothing."""

    def __init__(
        self, settings: HealingSettings, policy: Policy, ledger: Ledger, kill_switch_file: Path
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._ledger = ledger
        self._kill_switch_file = kill_switch_file

    def mode_of(self, remedy: Remedy) -> Mode:
        """Return how far an action may go: the policy's mode, at most the global one.

        What touches nothing outside is done in every mode but ``off``.
        """
        if not remedy.touches and self._settings.mode is not Mode.OFF:
            return remedy.mode
        return min(self._settings.mode, remedy.mode, key=_ORDER.index)

    def minimum_confidence(self, remedy: Remedy) -> float:
        """Return the confidence that an action needs; what touches nothing needs its own only."""
        if not remedy.touches:
            return remedy.minimum_confidence
        return max(remedy.minimum_confidence, self._settings.minimum_confidence)

    def kill_switch(self) -> str:
        """Return which kill switch is on, in words; empty when none is."""
        if self._settings.kill_switch:
            return "the setting healing.kill_switch is on"
        path = self._kill_switch_file
        try:
            said = path.read_text("utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            # Somebody put something there that cannot be read: that is no reason to go on.
            return f"the file {path} is there and cannot be read ({error.strerror})"
        note = " ".join(said.split())[:200]
        return f"the file {path} exists" + (f": {note}" if note else "")

    def own_doing(self, cause: str, entity: str) -> str:
        """Return which standing action of Galen's own a cause looks like, in words; empty for none.

        Without this, one remedy would take back another in turn.
        """
        for action in (*self._ledger.actions(states=UNDER_WAY), *self._ledger.standing()):
            remedy = self._policy.actions.get(action.action)
            if remedy is not None and cause in remedy.explains and related(action.entity, entity):
                return f"{cause} is what Galen's own {action.action} on {action.entity} looks like"
        return ""

    def decide(self, request: Request, now: float) -> Decision:
        """Judge one request."""
        if request.incident.state is not IncidentState.OPEN:
            return Decision(GuardReason.INCIDENT_CLOSED, "the incident is over")
        mode = self.mode_of(request.remedy)
        if mode is Mode.OFF:
            return Decision(GuardReason.MODE_OFF, f"the mode of {request.remedy.name} is off")
        lead = request.incident.leading
        if lead is not None and not request.approved:
            own = self.own_doing(lead.cause, lead.entity)
            if own:
                return Decision(GuardReason.OWN_DOING, own)
        if request.entity is None:
            return Decision(
                GuardReason.NO_EXECUTOR,
                f"no {request.remedy.executor} that Galen can act on belongs to "
                f"{request.incident.entity}",
            )
        if request.not_asked_for:
            return Decision(GuardReason.NOT_ASKED_FOR, request.not_asked_for)
        refusal = self._past_refusal(request, request.entity, now)
        if refusal is None and request.remedy.touches:
            refusal = self._safety_refusal(request, request.entity, now)
        return refusal or self._consent(request, mode)

    def _past_refusal(self, request: Request, entity: str, now: float) -> Decision | None:
        """Judge by what was done before to this entity."""
        remedy = request.remedy
        here = [
            action
            for action in self._ledger.actions(incident_id=request.incident.id)
            if action.action == remedy.name
            and action.started_seconds is not None
            and action.id != request.own_action_id
            # What helped and was taken back may be needed again; its own delay bounds that.
            and action.state is not ActionState.UNDONE
        ]
        if len(here) >= remedy.attempts:
            return Decision(
                GuardReason.ATTEMPTS_EXHAUSTED,
                f"{remedy.name} was tried {_times(len(here))} in this incident",
            )
        if not remedy.touches:
            return None
        window = max(self._settings.repeat_window_seconds, remedy.cooldown_seconds)
        same = [
            action
            for action in self._ledger.started_since(now - window)
            if action.action == remedy.name and action.entity == entity
        ]
        since = now - self._settings.repeat_window_seconds
        repeats = sum(1 for action in same if _started(action) >= since)
        if repeats >= self._settings.repeat_limit:
            return Decision(
                GuardReason.REPEATED,
                f"{remedy.name} was needed {_times(repeats)} on {entity} within "
                f"{self._settings.repeat_window_seconds / _HOUR_SECONDS:.0f} h: it does not cure",
            )
        left = max((_started(action) for action in same), default=0.0)
        left += remedy.cooldown_seconds - now
        if same and left > 0:
            return Decision(
                GuardReason.COOLDOWN,
                f"{remedy.name} was done to {entity} a moment ago; its cooldown ends in {left:.0f} s",
            )
        return None

    def _safety_refusal(self, request: Request, entity: str, now: float) -> Decision | None:
        """Judge by what goes on now, and by how much has been done over everything."""
        if switch := self.kill_switch():
            return Decision(GuardReason.KILL_SWITCH, switch)
        if request.missing_parameter:
            return Decision(GuardReason.NO_BASELINE, request.missing_parameter)
        for action in self._ledger.actions(states=UNDER_WAY):
            if action.id != request.own_action_id and related(action.entity, entity):
                return Decision(
                    GuardReason.ENTITY_BUSY, f"{action.action} is under way on {action.entity}"
                )
        hour = [a for a in self._ledger.started_since(now - _HOUR_SECONDS) if self._touched(a)]
        if len(hour) >= self._settings.max_actions_per_hour:
            return Decision(
                GuardReason.RATE_LIMITED,
                f"{len(hour)} actions within an hour are the most that is allowed",
            )
        return self._blast_radius(request, entity, now) or self._stale(request)

    def _blast_radius(self, request: Request, entity: str, now: float) -> Decision | None:
        """Bound how many entities are touched within a window, absolutely and as a share.

        A percentage alone is too coarse for a small fleet and a number alone for a large one, so both
        hold (NVSentinel added the absolute bound after 1 % of 288 nodes had been three).
        """
        window = self._settings.blast_radius_window_seconds
        touched = {
            action.entity
            for action in self._ledger.started_since(now - window)
            if self._touched(action)
        }
        most = self._settings.max_entities
        alike = {name for name in touched if kind_of(name) == kind_of(entity)}
        share = max(1, int(self._settings.max_entity_share * request.peers))
        for names, limit in ((touched, most), (alike, share)):
            if entity not in names and len(names) >= limit:
                return Decision(
                    GuardReason.BLAST_RADIUS,
                    f"{len(names)} other entities were acted on within {window:.0f} s; "
                    f"{limit} are allowed",
                )
        return None

    @staticmethod
    def _stale(request: Request) -> Decision | None:
        return Decision(GuardReason.STALE_DATA, request.stale) if request.stale else None

    def _touched(self, action: Action) -> bool:
        remedy = self._policy.actions.get(action.action)
        return remedy is None or remedy.touches

    def _consent(self, request: Request, mode: Mode) -> Decision:
        """Judge by who has to agree."""
        remedy = request.remedy
        needed = self.minimum_confidence(remedy)
        sure = request.confidence >= needed
        low = Decision(
            GuardReason.LOW_CONFIDENCE,
            f"the cause is {request.confidence:.0%} sure and {remedy.name} needs {needed:.0%}",
        )
        if mode is Mode.DRY_RUN:
            words = f"{remedy.name} is rehearsed only"
            return Decision(GuardReason.DRY_RUN, words) if sure else low
        if request.approved:
            return Decision(GuardReason.ALLOWED)
        if request.blind_spots:
            return Decision(
                GuardReason.UNVERIFIABLE,
                f"nothing measures {', '.join(request.blind_spots)} there, so nothing could prove it",
            )
        if not sure:
            return low
        if mode is Mode.APPROVE:
            return Decision(GuardReason.NEEDS_APPROVAL, f"{remedy.name} waits for a person's yes")
        return Decision(GuardReason.ALLOWED)


def _started(action: Action) -> float:
    return action.started_seconds or 0.0


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count} times"
