"""`routecast health`."""

from typing import Annotated

import grpc
from cyclopts import Parameter
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.commands.common import OUT, FailureError


def health(
    *,
    address: Annotated[str, Parameter(help="The gRPC server, host:port.")] = "127.0.0.1:50051",
    timeout_s: Annotated[float, Parameter(help="How long to wait for an answer.")] = 3.0,
) -> None:
    """Ask a service for its health; exit with 1 unless it is serving. For container health checks."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise FailureError(f"{address}: {error.details()}") from error
    name = HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status != HealthCheckResponse.SERVING:
        raise FailureError(f"{address}: {name}")
    OUT.print(f"{address}: {name}")
