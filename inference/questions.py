"""What the service asks itself: golden examples, through the same queue as users' requests."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from inference.canary import Golden
from inference.consistency import Question
from inference.errors import ServiceError
from inference.model import GoldenPrompt
from inference.requests import GenerationRequest

if TYPE_CHECKING:
    from inference.service import InferenceService

# Long enough to differ, short enough to cost little.
_QUESTION_TOKENS = 64


class Questions:
    """Asks a model its golden examples, for the canary and for the comparison of replicas."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._numbers = itertools.count(1)

    async def ask(self, model: str, golden: Golden) -> str:
        """Send a golden example through the real queue; say what was wrong with the answer.

        Raises:
            ServiceError: there was no answer.
        """
        if not isinstance(golden, GoldenPrompt):
            return await self._service.tensors.ask(model, golden)
        limit = golden.max_tokens or self._service.settings.max_output_tokens
        text = await self._text(model, golden.task, golden.text, limit)
        right = text.strip() == golden.expected.strip()
        return "" if right else f"wrong answer to a golden prompt ({golden.task})"

    def for_peers(self) -> list[Question]:
        """Return what this replica and its peers are asked: the serving model's golden prompts."""
        model = self._service.serving_model
        metadata = self._service.hosts[model].metadata()
        return [
            Question(
                model,
                golden.text,
                golden.task,
                max_tokens=golden.max_tokens or _QUESTION_TOKENS,
            )
            for golden in (metadata.golden if metadata is not None else ())
            if isinstance(golden, GoldenPrompt)
        ]

    async def answer(self, question: Question) -> str | None:
        """Answer a question to all replicas, or stay silent."""
        limit = question.max_tokens
        try:
            return await self._text(question.model, question.task, question.text, limit)
        except ServiceError:
            return None

    async def _text(self, model: str, task: str, text: str, max_tokens: int) -> str:
        service = self._service
        request = GenerationRequest(
            request_id=f"canary-{next(self._numbers)}",
            model=model,
            task=task,
            text=text,
            deadline=service.clock() + service.settings.canary_deadline_seconds,
            max_tokens=max_tokens,
            canary=True,
            golden=True,
        )
        ticket, _ = service.submit(request)
        return (await ticket.result()).text
