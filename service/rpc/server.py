"""The gRPC server: RouterService, health and reflection, and the channel arguments that defaults get wrong."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from routecast.admin.v1 import failover_pb2, failover_pb2_grpc
from routecast.v1 import router_pb2, router_pb2_grpc

from service.rpc.failover_service import FailoverService
from service.rpc.router_service import RouterService

ROUTER = router_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name
FAILOVER = failover_pb2.DESCRIPTOR.services_by_name["FailoverService"].full_name
_NAMES = ("", ROUTER, FAILOVER)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpcio ships no types for it
    """grpc.health.v1 with Check, Watch and List. Watches end when the server drains: an open one would hold it up."""

    def __init__(self) -> None:
        self._status = health_pb2.HealthCheckResponse.NOT_SERVING
        self._changed = asyncio.Condition()
        self._draining = False

    async def set_serving(self, serving: bool) -> None:
        """Set the status of the whole server and of each service, and tell every watcher."""
        statuses = health_pb2.HealthCheckResponse
        async with self._changed:
            self._draining = not serving
            self._status = statuses.SERVING if serving else statuses.NOT_SERVING
            self._changed.notify_all()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802  # gRPC
        """Return the status of a service; NOT_FOUND for one this server does not have."""
        if request.service not in _NAMES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(  # noqa: N802  # gRPC
        self,
        request: health_pb2.HealthCheckRequest,
        context: Any,  # noqa: ARG002  # gRPC
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Send the status of a service now and at each change; SERVICE_UNKNOWN for one this server does not have."""
        if request.service not in _NAMES:
            yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        told: int | None = None
        while True:
            async with self._changed:
                while self._status == told and not self._draining:
                    await self._changed.wait()
                told = self._status
            if request.service in _NAMES:
                yield health_pb2.HealthCheckResponse(status=told)
            if self._draining:
                return

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:  # noqa: ARG002, N802  # gRPC
        """Return the status of every service."""
        status = health_pb2.HealthCheckResponse(status=self._status)
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(_NAMES, status))


class RpcServer:
    """One gRPC server on one address."""

    def __init__(self, service: RouterService, failover: FailoverService, max_message_bytes: int) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # grpcio sheds with CANCELLED beyond 1,000 pending calls, which a burst reaches easily.
                ("grpc.server.max_pending_requests", 10_000),
                ("grpc.server.max_pending_requests_hard_limit", 20_000),
                # Clients that keep idle channels alive are not misbehaving.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.so_reuseport", 0),
            ]
        )
        self._health = Health()
        router_pb2_grpc.add_RouterServiceServicer_to_server(service, self._server)
        failover_pb2_grpc.add_FailoverServiceServicer_to_server(failover, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (ROUTER, FAILOVER, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME),
            self._server,
        )

    async def start(self, address: str) -> int:
        """Listen on host:port and return the bound port. Raises OSError when the address is taken."""
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        await self._server.start()
        await self._health.set_serving(True)
        return port

    async def announce_stop(self) -> None:
        """Say NOT_SERVING, so that load balancers look elsewhere."""
        await self._health.set_serving(False)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and let those in flight finish within the grace period."""
        await self._server.stop(grace_s)
