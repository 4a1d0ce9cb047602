"""The way of a tensor request into the service: the same rules as for text, then its batch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import ServiceError, UnavailableError
from inference.fallback import Route
from inference.model import GoldenTensors
from inference.requests import TicketState
from inference.tensor.datatypes import to_buffer
from inference.tensor.golden import difference
from inference.tensor.requests import TensorTicket

if TYPE_CHECKING:
    from inference.engine_host import EngineHost
    from inference.service import InferenceService
    from inference.tensor.dispatch import TensorDispatcher


_NO_ROUTE = Route("")


class TensorFront:
    """Admits tensor requests; belongs to the event loop."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._golden_number = 0
        self.calm_route = _NO_ROUTE
        """What `submit` returns while nothing is to be checked, the degradation level being 0."""
        self._calm_tensors: TensorDispatcher

    def submit(self, ticket: TensorTicket) -> Route:
        """Admit a request; return who will answer.

        Raises:
            ServiceError: it is refused; a refusal costs no engine time.
        """
        service = self._service
        try:
            calm = ticket.model == self.calm_route.model and not ticket.canary
            if calm or self._calm(ticket):
                service.count_arrival()
                self._calm_tensors.submit(ticket)
                return self.calm_route
            service.check_admission(ticket)
            route = service.route(ticket.model, canary=ticket.canary)
            host = service.hosts[route.model]
            if not ticket.golden:
                service.poison.check(ticket, route.model, host.version)
            host.check_available(ticket.deadline - service.clock(), golden=ticket.golden)
            host.tensors.submit(ticket)
        except ServiceError as error:
            service.count_refusal(ticket, error)
            raise
        if route.reason:
            service.metrics.fell_back(ticket.model, route.model, route.reason.value)
        return route

    def _calm(self, ticket: TensorTicket) -> bool:
        """Say whether nothing is to be checked for a request but its place in line.

        Found out once for all requests of one turn of the event loop: nobody drains, nothing is
        given up, limited or suspected, and the engine works.
        """
        service = self._service
        route = service.route(ticket.model, canary=False)
        host = service.hosts[route.model]
        if route.reason or not service.gate.calm or not service.poison.quarantine.empty:
            return False
        if not host.works_now or ticket.canary:
            return False
        self.calm_route, self._calm_tensors = route, host.tensors
        asyncio.get_running_loop().call_soon(self._forget_calm)
        return True

    def _forget_calm(self) -> None:
        self.calm_route = _NO_ROUTE

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
        expected = {name: value[: ticket.rows] for name, value in golden.outputs.items()}
        wrong = difference(expected, found, golden.tolerance)
        return f"wrong answer to a golden example: {wrong}" if wrong else ""

    def _golden_ticket(
        self, host: EngineHost, golden: GoldenTensors, ended: asyncio.Future[None]
    ) -> TensorTicket:
        limit = host.tensors.max_batch_rows
        arrays = [
            # An example may have more rows than a batch here; rows do not depend on each other.
            np.asarray(golden.inputs[info.name], dtype=info.datatype.dtype)[:limit]
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
