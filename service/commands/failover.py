"""`routecast providers`, `check`, `drain`, `restore`, `switch`: what operators see and do, from a shell."""

import getpass
from typing import Annotated, Any

import grpc
from cyclopts import Parameter
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.table import Table
from routecast.admin.v1 import failover_pb2, failover_pb2_grpc
from routecast.v1 import routing_pb2

from service.commands.common import OUT, AsJson, FailureError

Address = Annotated[str, Parameter(help="The gRPC server, host:port.")]
Reason = Annotated[str, Parameter(help="Why, for the record.")]
Operator = Annotated[str | None, Parameter(help="Who, for the record; the key's owner or your user name by default.")]
Key = Annotated[str, Parameter(env_var="ROUTECAST_OPERATOR_KEY", help="An operator's key, where they are asked for.")]

_HERE = "127.0.0.1:50051"
_TIMEOUT_S = 15.0
_Server = tuple[str, str]


def _ask(server: _Server, method: str, request: Message) -> Any:
    address, key = server
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    with grpc.insecure_channel(address) as channel:
        call = getattr(failover_pb2_grpc.FailoverServiceStub(channel), method)
        try:
            return call(request, timeout=_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            raise FailureError(f"{address}: {error.code().name}: {error.details()}") from error


def providers(*, provider: str = "", address: Address = _HERE, key: Key = "", as_json: AsJson = False) -> None:
    """Show the health of all providers, and the failure domains that are down."""
    request = failover_pb2.ListProviderHealthRequest(provider=provider)
    answer = _ask((address, key), "ListProviderHealth", request)
    if as_json:
        OUT.print_json(MessageToJson(answer, preserving_proto_field_name=True))
        return
    table = Table("endpoint", "region", "status", "state", "score", "risk", "admitted", "errors 60 s", "median", "note")
    for each in answer.providers:
        for endpoint in each.endpoints:
            table.add_row(
                endpoint.endpoint_id,
                each.region,
                failover_pb2.HealthStatus.Name(endpoint.status).removeprefix("HEALTH_STATUS_").lower(),
                routing_pb2.HealthState.Name(endpoint.state).removeprefix("HEALTH_STATE_").lower(),
                f"{endpoint.score:.2f}",
                f"{endpoint.risk:.2f}" if endpoint.HasField("risk") else "",
                f"{endpoint.admission:.0%}",
                f"{endpoint.error_rate:.1%}",
                f"{endpoint.median_latency.ToMilliseconds()} ms" if endpoint.HasField("median_latency") else "",
                _note(endpoint),
            )
    OUT.print(table)
    for outage in answer.outages:
        OUT.print(f"{outage.kind} {outage.name} is down: {', '.join(outage.endpoint_ids)}")


def _note(endpoint: failover_pb2.EndpointHealth) -> str:
    notes = [
        "warned" if endpoint.warned else "",
        "pinned" if endpoint.pinned else "",
        f"{endpoint.consecutive_failures} failures in a row: {endpoint.last_error}"
        if endpoint.consecutive_failures
        else "",
    ]
    return ", ".join(note for note in notes if note)


def check(endpoint_id: str, *, address: Address = _HERE, key: Key = "") -> None:
    """Send a probe to an endpoint now; exit with 1 unless it is answered."""
    request = failover_pb2.CheckEndpointRequest(endpoint_id=endpoint_id)
    answer = _ask((address, key), "CheckEndpoint", request)
    outcome = routing_pb2.Outcome.Name(answer.outcome).removeprefix("OUTCOME_").lower()
    said = f"{endpoint_id}: {outcome} after {answer.latency.ToMilliseconds()} ms"
    if answer.outcome != routing_pb2.OUTCOME_OK:
        raise FailureError(f"{said}: {answer.error}")
    OUT.print(said)


def drain(
    endpoint_id: str, *, reason: Reason, operator: Operator = None, address: Address = _HERE, key: Key = ""
) -> None:
    """Take an endpoint out of service; requests in flight finish there."""
    request = failover_pb2.DrainEndpointRequest(endpoint_id=endpoint_id, operator=_who(operator, key), reason=reason)
    _tell(_ask((address, key), "DrainEndpoint", request).health)


def restore(
    endpoint_id: str, *, reason: Reason, operator: Operator = None, address: Address = _HERE, key: Key = ""
) -> None:
    """Let a drained endpoint earn its traffic back."""
    request = failover_pb2.RestoreEndpointRequest(endpoint_id=endpoint_id, operator=_who(operator, key), reason=reason)
    _tell(_ask((address, key), "RestoreEndpoint", request).health)


def switch(
    model: str,
    endpoint_id: str = "",
    *,
    reason: Reason,
    operator: Operator = None,
    address: Address = _HERE,
    key: Key = "",
) -> None:
    """Send a model's traffic to one of its endpoints; without an endpoint, end that."""
    request = failover_pb2.SwitchModelRequest(
        model=model, endpoint_id=endpoint_id, operator=_who(operator, key), reason=reason
    )
    answer = _ask((address, key), "SwitchModel", request)
    OUT.print(f"{model}: {f'switched to {answer.endpoint_id}' if answer.endpoint_id else 'routed by objective again'}")


def _who(operator: str | None, key: str) -> str:
    """Return who does it, by name; whoever shows a key is known by that."""
    return operator or ("" if key else getpass.getuser())


def _tell(health: failover_pb2.EndpointHealth) -> None:
    state = routing_pb2.HealthState.Name(health.state).removeprefix("HEALTH_STATE_").lower()
    OUT.print(f"{health.endpoint_id}: {state}")
