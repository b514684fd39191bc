"""What operators do by hand: drain, restore, switch, check. Each is refused without who and why, and goes on record."""

from collections.abc import Callable

from analytics.records import OperationRecord
from routing.errors import CatalogueError, UnknownEndpointError, UnknownModelError
from routing.model import Endpoint
from service.errors import InvalidRequestError, NotFoundError, Violation
from service.health_board import HealthBoard
from service.probes import Probed, Prober
from service.router import Router


class Operations:
    """See the module's docstring. `record` takes history records and may not raise."""

    def __init__(
        self,
        router: Router,
        board: HealthBoard,
        prober: Prober,
        record: Callable[[OperationRecord], None],
        replica: str,
    ) -> None:
        self._router = router
        self._board = board
        self._prober = prober
        self._record = record
        self._replica = replica

    def drain(self, endpoint_id: str, operator: str, reason: str) -> None:
        """Take an endpoint out; requests in flight finish there. Raises ServiceError."""
        note = _signed(operator, reason)
        endpoint = self._endpoint(endpoint_id)
        self._router.drain(endpoint.id, note)
        self._recorded("drain", endpoint.model, endpoint.id, operator, reason)

    def restore(self, endpoint_id: str, operator: str, reason: str) -> None:
        """Let a drained endpoint earn its traffic back. Raises ServiceError."""
        note = _signed(operator, reason)
        endpoint = self._endpoint(endpoint_id)
        self._router.restore(endpoint.id, note)
        self._recorded("restore", endpoint.model, endpoint.id, operator, reason)

    def switch(self, model: str, endpoint_id: str, operator: str, reason: str) -> None:
        """Send a model's traffic to one endpoint; "" ends that. Raises ServiceError."""
        _signed(operator, reason)
        try:
            self._router.switch(model, endpoint_id)
        except UnknownModelError as error:
            raise NotFoundError("UNKNOWN_MODEL", str(error), error.known) from error
        except CatalogueError as error:
            raise InvalidRequestError(Violation("endpoint_id", str(error))) from error
        self._recorded("switch" if endpoint_id else "release", model, endpoint_id, operator, reason)

    async def check(self, endpoint_id: str) -> Probed:
        """Probe an endpoint now and return how that ended. Raises ServiceError for an unknown one."""
        endpoint = self._endpoint(endpoint_id)
        self._board.checked(endpoint.id, self._router.clock.now())
        return await self._prober.check(endpoint)

    def _endpoint(self, endpoint_id: str) -> Endpoint:
        try:
            return self._router.engine.catalogue.endpoint(endpoint_id)
        except UnknownEndpointError as error:
            raise NotFoundError("UNKNOWN_ENDPOINT", str(error)) from error

    def _recorded(self, operation: str, model: str, endpoint_id: str, operator: str, reason: str) -> None:
        self._record(
            OperationRecord(
                replica=self._replica,
                time=self._router.clock.now(),
                operation=operation,
                model=model,
                endpoint=endpoint_id,
                operator=operator,
                reason=reason,
            )
        )


def _signed(operator: str, reason: str) -> str:
    missing = [name for name, value in (("operator", operator), ("reason", reason)) if not value.strip()]
    if missing:
        raise InvalidRequestError(
            *(Violation(name, "expected who does it and why, for the record") for name in missing)
        )
    return f"{operator}: {reason}"
