"""Finding out in the background which suspects bring a worker down."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from inference.poison.bisection import Bisection, Verdict
from inference.poison.quarantine import Quarantine
from inference.poison.sandbox import ControlFailedError, Numbered, SandboxError, Trial

_log = structlog.get_logger(__name__)

# Investigations that may wait; suspects beyond that stay suspended until their time is over.
_MAX_WAITING = 8
_RETURN_SECONDS = 10.0
_RETURN_LOOKS = 200


@dataclass(frozen=True, slots=True)
class Case:
    """A worker that went down, and the requests that it was working on."""

    model: str
    version: int
    effect: str
    """``crash`` or ``hang``."""
    suspects: Mapping[str, Numbered]
    """By fingerprint."""


class Investigator:
    """Takes cases, one at a time; suspects are suspended meanwhile."""

    def __init__(
        self,
        quarantine: Quarantine,
        make_trial: Callable[[Case], Trial] | None,
        *,
        max_trials: int,
        limit_seconds: float,
        serving: Callable[[str], bool] = lambda _model: True,
    ) -> None:
        self._quarantine = quarantine
        self._make_trial = make_trial
        self._max_trials = max_trials
        self._limit_seconds = limit_seconds
        self._serving = serving
        self._cases: asyncio.Queue[Case] = asyncio.Queue(_MAX_WAITING)
        self.trials: Counter[str] = Counter()
        """Trials by outcome: ``survived`` or ``died``."""
        self.outcomes: Counter[str] = Counter()
        """Cases by how they ended: ``found``, ``cleared``, ``inconclusive``, ``not_tried``."""
        self.current: Case | None = None

    def report(self, case: Case) -> None:
        """Suspend the suspects of a case and take it up as soon as may be."""
        if not case.suspects:
            return
        self._quarantine.suspend(case.suspects, case.effect)
        _log.warning(
            "requests_suspected", model=case.model, version=case.version, effect=case.effect,
            suspects=list(case.suspects), sandbox=self._make_trial is not None,
        )  # fmt: skip
        if self._make_trial is None or self._cases.full():
            self.outcomes["not_tried"] += 1
        else:
            self._cases.put_nowait(case)

    @property
    def waiting(self) -> int:
        """Cases that are not taken up yet."""
        return self._cases.qsize()

    async def run(self) -> None:
        """Work on cases until cancelled."""
        while True:
            self.current = await self._cases.get()
            try:
                await self._investigate(self.current)
            except Exception:  # noqa: BLE001 - it is logged; see below
                # Suspicion ends by itself; an investigation must never take the service along.
                self.outcomes["inconclusive"] += 1
                _log.exception("investigation_failed", model=self.current.model)
            finally:
                self.current = None

    async def _investigate(self, case: Case) -> None:
        make_trial = self._make_trial
        if make_trial is None:
            return
        await self._let_it_return(case.model)
        search = Bisection(tuple(case.suspects.items()), self._max_trials)
        trial = make_trial(case)
        try:
            async with asyncio.timeout(self._limit_seconds):
                await self._try_all(search, trial)
            reason = "" if search.finished else f"{search.trials} trials were not enough"
        except TimeoutError:
            reason = f"it took longer than {self._limit_seconds:g} s"
        except ControlFailedError as error:
            reason = str(error)
            self._quarantine.clear(case.suspects)
        except SandboxError as error:
            reason = str(error)
        finally:
            await trial.close()
        self._conclude(case, search.verdict(), search.trials, reason)

    async def _let_it_return(self, model: str) -> None:
        """Wait a while for the engine that went down: its return must not compete with trials."""
        for _ in range(_RETURN_LOOKS):
            if self._serving(model):
                return
            await asyncio.sleep(_RETURN_SECONDS / _RETURN_LOOKS)

    async def _try_all(self, search: Bisection[tuple[str, Numbered]], trial: Trial) -> None:
        while search.group is not None:
            survived = await trial.survives([make for _, make in search.group])
            self.trials["survived" if survived else "died"] += 1
            search.record(survived=survived)

    def _conclude(
        self, case: Case, verdict: Verdict[tuple[str, Numbered]], trials: int, reason: str
    ) -> None:
        """Quarantine who was found, clear who was cleared; the others stay suspended."""
        for group in verdict.culprits:
            self._condemn(case, group)
        self._quarantine.clear(fingerprint for fingerprint, _ in verdict.cleared)
        outcome = "inconclusive" if reason else "found" if verdict.culprits else "cleared"
        self.outcomes[outcome] += 1
        _log.info(
            "investigation_ended", model=case.model, outcome=outcome, reason=reason, trials=trials,
            quarantined=sum(map(len, verdict.culprits)), cleared=len(verdict.cleared),
            unresolved=len(verdict.unresolved),
        )  # fmt: skip

    def _condemn(self, case: Case, group: Sequence[tuple[str, Numbered]]) -> None:
        prints = [fingerprint for fingerprint, _ in group]
        self._quarantine.condemn(case.model, case.version, prints, case.effect)
        _log.warning(
            "requests_quarantined", model=case.model, version=case.version, effect=case.effect,
            fingerprints=prints,
        )  # fmt: skip
