"""routecast.admin.v1.FailoverService: what operators see and do, over gRPC."""

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from routecast.admin.v1 import failover_pb2, failover_pb2_grpc

from service.callers import Operators
from service.errors import InvalidRequestError, NotFoundError, ServiceError, Violation
from service.health_board import EndpointHealth, HealthBoard, Overview, Status
from service.operations import Operations
from service.rpc.convert import duration, outcome_to_proto, state_to_proto, timestamp
from service.rpc.status import abort

_STATUS_VALUES = {s: failover_pb2.HealthStatus.Value(f"HEALTH_STATUS_{s.name}") for s in Status}


class FailoverService(failover_pb2_grpc.FailoverServiceServicer):
    """See protos/routecast/admin/v1/failover.proto for what each method promises."""

    def __init__(self, board: HealthBoard, operations: Operations, operators: Operators) -> None:
        self._board = board
        self._operations = operations
        self._operators = operators

    def _who(self, context: Any) -> str:
        return self._operators.of(dict(context.invocation_metadata() or ()).get("authorization"))

    def _signed(self, context: Any, named: str) -> str:
        """Return who makes a change: the owner of the key shown, or whom the request names where keys are not asked
        for.
        """
        who = self._who(context)
        if who and named not in ("", who):
            raise InvalidRequestError(
                Violation("operator", f"the key shown belongs to {who!r}: expected that name, or none")
            )
        return who or named

    async def ListProviderHealth(  # noqa: N802  # gRPC
        self, request: failover_pb2.ListProviderHealthRequest, context: Any
    ) -> failover_pb2.ListProviderHealthResponse:
        """Show everything as it is now."""
        overview = self._board.overview()
        try:
            self._who(context)
            providers = _providers(overview, request.provider)
        except ServiceError as error:
            await abort(context, error)
        return failover_pb2.ListProviderHealthResponse(providers=providers, outages=_outages(overview))

    async def WatchProviderHealth(  # noqa: N802  # gRPC
        self, request: failover_pb2.WatchProviderHealthRequest, context: Any
    ) -> AsyncIterator[failover_pb2.WatchProviderHealthResponse]:
        """Show everything now and at each change."""
        told = None
        async for overview in self._board.watch():
            try:
                self._who(context)
                providers = _providers(overview, request.provider)
            except ServiceError as error:
                await abort(context, error)
            response = failover_pb2.WatchProviderHealthResponse(providers=providers, outages=_outages(overview))
            if response != told:
                told = response
                yield response

    async def CheckEndpoint(  # noqa: N802  # gRPC
        self, request: failover_pb2.CheckEndpointRequest, context: Any
    ) -> failover_pb2.CheckEndpointResponse:
        """Probe an endpoint now."""
        try:
            self._who(context)
            probed = await self._operations.check(request.endpoint_id)
        except ServiceError as error:
            await abort(context, error)
        return failover_pb2.CheckEndpointResponse(
            outcome=outcome_to_proto(probed.outcome),
            latency=duration(probed.latency_s),
            error=probed.error,
            health=_endpoint(self._board.endpoint(request.endpoint_id)),
        )

    async def DrainEndpoint(  # noqa: N802  # gRPC
        self, request: failover_pb2.DrainEndpointRequest, context: Any
    ) -> failover_pb2.DrainEndpointResponse:
        """Take an endpoint out."""
        try:
            self._operations.drain(request.endpoint_id, self._signed(context, request.operator), request.reason)
        except ServiceError as error:
            await abort(context, error)
        return failover_pb2.DrainEndpointResponse(health=_endpoint(self._board.endpoint(request.endpoint_id)))

    async def RestoreEndpoint(  # noqa: N802  # gRPC
        self, request: failover_pb2.RestoreEndpointRequest, context: Any
    ) -> failover_pb2.RestoreEndpointResponse:
        """Let a drained endpoint come back."""
        try:
            self._operations.restore(request.endpoint_id, self._signed(context, request.operator), request.reason)
        except ServiceError as error:
            await abort(context, error)
        return failover_pb2.RestoreEndpointResponse(health=_endpoint(self._board.endpoint(request.endpoint_id)))

    async def SwitchModel(  # noqa: N802  # gRPC
        self, request: failover_pb2.SwitchModelRequest, context: Any
    ) -> failover_pb2.SwitchModelResponse:
        """Send a model's traffic to one endpoint."""
        try:
            self._operations.switch(
                request.model, request.endpoint_id, self._signed(context, request.operator), request.reason
            )
        except ServiceError as error:
            await abort(context, error)
        return failover_pb2.SwitchModelResponse(endpoint_id=request.endpoint_id)


def _providers(overview: Overview, provider: str) -> list[failover_pb2.ProviderHealth]:
    if provider and provider not in overview.providers:
        known = tuple(overview.providers)
        raise NotFoundError("UNKNOWN_PROVIDER", f"unknown provider {provider!r}; known: {', '.join(known)}", known)
    return [
        failover_pb2.ProviderHealth(
            provider=name,
            region=endpoints[0].candidate.facts.endpoint.region,
            zone=endpoints[0].candidate.facts.endpoint.zone,
            status=_STATUS_VALUES[overview.status_of(name)],
            endpoints=[_endpoint(endpoint) for endpoint in endpoints],
        )
        for name, endpoints in overview.providers.items()
        if provider in ("", name)
    ]


def _outages(overview: Overview) -> list[failover_pb2.DomainOutage]:
    return [
        failover_pb2.DomainOutage(
            kind=outage.domain.kind.value,
            name=outage.domain.name,
            start_time=timestamp(outage.since),
            endpoint_ids=sorted(outage.out),
        )
        for outage in overview.outages
    ]


def _endpoint(health: EndpointHealth) -> failover_pb2.EndpointHealth:
    facts = health.candidate.facts
    return failover_pb2.EndpointHealth(
        endpoint_id=facts.endpoint.id,
        model=facts.endpoint.model,
        status=_STATUS_VALUES[health.status],
        state=state_to_proto(facts.state),
        score=health.candidate.score,
        risk=facts.risk,
        warned=health.warned,
        admission=facts.admission,
        last_probe_time=_moment(health.last_probe),
        last_success_time=_moment(health.last_success),
        last_failure_time=_moment(health.last_failure),
        consecutive_failures=health.consecutive_failures,
        median_latency=None if facts.latency_s is None else duration(facts.latency_s),
        error_rate=facts.error_rate,
        in_flight=facts.in_flight,
        last_error=health.last_error,
        pinned=health.pinned,
    )


def _moment(unix_s: float | None) -> Timestamp | None:
    return None if unix_s is None else timestamp(unix_s)
