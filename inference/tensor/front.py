"""The way of a tensor request into the service: the same rules as for text, then its batch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.degradation import Level
from inference.errors import (
    OverloadedError,
    QuarantinedError,
    ServiceError,
    UnavailableError,
)
from inference.model import GoldenTensors, ModelKind
from inference.requests import TicketState
from inference.tensor.datatypes import to_buffer
from inference.tensor.golden import difference
from inference.tensor.requests import TensorTicket

if TYPE_CHECKING:
    from inference.engine_host import EngineHost
    from inference.service import InferenceService


class TensorFront:
    """Admits tensor requests; belongs to the event loop."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._golden_number = 0

    def submit(self, ticket: TensorTicket) -> str:
        """Admit a request; return the model that will answer.

        Raises:
            ServiceError: it is refused; a refusal costs no engine time.
        """
        service = self._service
        try:
            service.check_admission(ticket)
            model = ticket.model if service.degradation.level < Level.SMALL_MODEL else ""
            model = model or self._fallback(ticket)
            host = service.hosts[model]
            if not ticket.golden:
                service.poison.check(ticket, model, host.version)
            host.check_available(ticket.deadline - service.clock(), golden=ticket.golden)
            host.tensors.submit(ticket)
        except (OverloadedError, UnavailableError, QuarantinedError) as error:
            if not ticket.canary:
                service.metrics.rejected(ticket.model, error.reason)
            raise
        return model

    def cancel(self, ticket: TensorTicket, model: str) -> None:
        """Give up a request whose client has left; one that is done stays done."""
        if ticket.state is TicketState.DONE:
            return
        self._service.hosts[model].tensors.cancel(ticket)
        if not ticket.canary:
            self._service.metrics.cancelled(ticket.model)

    async def ask(self, model: str, golden: GoldenTensors) -> str:
        """Send a golden example through the real line; say what was wrong with the answer.

        Raises:
            ServiceError: there was no answer.
        """
        host = self._service.hosts[model]
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = self._golden_ticket(host, golden, ended)
        self.submit(ticket)
        try:
            await ended
        finally:
            self.cancel(ticket, model)
        infos = host.tensors.outputs
        found = {info.name: array for info, array in zip(infos, ticket.outputs(), strict=True)}
        wrong = difference(golden.outputs, found, golden.tolerance)
        return f"wrong answer to a golden example: {wrong}" if wrong else ""

    def _golden_ticket(
        self, host: EngineHost, golden: GoldenTensors, ended: asyncio.Future[None]
    ) -> TensorTicket:
        arrays = [
            np.asarray(golden.inputs[info.name], dtype=info.datatype.dtype)
            for info in host.tensors.inputs
        ]
        host.check_available(golden=True)
        if not arrays:
            raise UnavailableError(f"the engine of {host.model} is not up", retry_after_seconds=1.0)

        def on_done(_ticket: TensorTicket, error: ServiceError | None) -> None:
            if ended.done():
                return
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)

        self._golden_number += 1
        service = self._service
        return TensorTicket(
            request_id=f"canary-{self._golden_number}",
            model=host.model,
            rows=len(arrays[0]),
            shapes=tuple(array.shape[1:] for array in arrays),
            data=tuple(bytes(to_buffer(array)) for array in arrays),
            deadline=service.clock() + service.settings.canary_deadline_seconds,
            on_done=on_done,
            canary=True,
            golden=True,
        )

    def _fallback(self, ticket: TensorTicket) -> str:
        """Return the next tensor model that takes and gives the same tensors, or the same model."""
        service = self._service
        if ticket.canary:
            return ticket.model
        own = service.hosts[ticket.model].tensors
        kin = service.kin(ticket.model)
        following = kin[kin.index(ticket.model) + 1 :]
        for model in following:
            host = service.hosts[model]
            if host.kind is ModelKind.TENSOR and _same(own, host.tensors):
                return model
        return ticket.model


def _same(one: Any, other: Any) -> bool:
    return bool(one.inputs == other.inputs and one.outputs == other.outputs and one.inputs)
