"""From protos to the core's values; `convert` goes the other way. Whatever a caller can say wrong is named here."""

from collections.abc import Iterable, Mapping
from math import inf

import msgspec
from google.protobuf.duration_pb2 import Duration
from routecast.v1 import chat_pb2, router_pb2, routing_pb2

from routing.errors import RequestError
from routing.model import Capability, Objective, RegionPolicy, RouteRequest
from routing.outcomes import Outcome
from service.callers import Caller
from service.completion import Completion
from service.config import Truncation
from service.errors import InvalidRequestError, Violation
from service.providers.base import Operation
from service.wire import asked, body_fields

_OBJECTIVES = {routing_pb2.Objective.Value(f"OBJECTIVE_{o.name}"): o for o in Objective} | {0: Objective.ORDERED}
_REGION_POLICIES = {routing_pb2.RegionPolicy.Value(f"REGION_POLICY_{p.name}"): p for p in RegionPolicy} | {
    0: RegionPolicy.ANYWHERE
}
_TRUNCATIONS: dict[int, Truncation | None] = {0: None} | {
    routing_pb2.Truncation.Value(f"TRUNCATION_{t.name}"): t for t in Truncation
}
_CAPABILITIES = {routing_pb2.Capability.Value(f"CAPABILITY_{c.name}"): c for c in Capability}
_OUTCOMES: dict[int, Outcome] = {routing_pb2.Outcome.Value(f"OUTCOME_{o.name}"): o for o in Outcome}
_ROLES = {
    chat_pb2.Role.Value(f"ROLE_{name.upper()}"): name for name in ("system", "developer", "user", "assistant", "tool")
}
_MODELLED = ("model", "messages", "stream", "temperature", "max_tokens")
# The core's name for a field, where the proto has another.
_FIELD_OF = {"budget_usd": "max_cost_usd", "slo_s": "latency_objective"}


def seconds(value: Duration, field: str) -> float:
    """Return a duration in seconds. Raises InvalidRequestError when it is negative."""
    microseconds = value.ToMicroseconds()
    if microseconds < 0:
        raise InvalidRequestError(Violation(field, "expected a duration of 0 or more"))
    return microseconds / 1e6


def _message(message: chat_pb2.ChatMessage, field: str) -> msgspec.Raw:
    if message.raw_json:
        if message.role or message.text:
            raise InvalidRequestError(Violation(field, "expected raw_json alone, or role and text"))
        body_fields(message.raw_json, f"{field}.raw_json")
        return msgspec.Raw(message.raw_json)
    if message.role not in _ROLES:
        raise InvalidRequestError(Violation(f"{field}.role", "expected a role, or raw_json instead"))
    return msgspec.Raw(msgspec.json.encode({"role": _ROLES[message.role], "content": message.text}))


def _extra(extra_json: bytes, forbidden: Iterable[str], field: str) -> dict[str, msgspec.Raw]:
    extra = body_fields(extra_json, field) if extra_json else {}
    if taken := [name for name in forbidden if name in extra]:
        raise InvalidRequestError(
            Violation(field, f"may not contain {', '.join(taken)}: the request has fields for them")
        )
    return extra


def objective(value: int, field: str = "routing.objective") -> Objective:
    """Return the core's objective. Raises InvalidRequestError for a number that is none."""
    if value not in _OBJECTIVES:
        raise InvalidRequestError(Violation(field, f"{value} is no Objective"))
    return _OBJECTIVES[value]


def outcome(value: int, field: str) -> Outcome:
    """Return the core's outcome. Raises InvalidRequestError when unspecified or unknown."""
    if value not in _OUTCOMES:
        raise InvalidRequestError(Violation(field, "expected an outcome"))
    return _OUTCOMES[value]


def _region_policy(value: int) -> RegionPolicy:
    if value not in _REGION_POLICIES:
        raise InvalidRequestError(Violation("routing.region_policy", f"{value} is no RegionPolicy"))
    return _REGION_POLICIES[value]


def _route(
    model: str,
    options: routing_pb2.RoutingOptions,
    *,
    needs: frozenset[Capability],
    input_tokens: int,
    max_output_tokens: int = 0,
    excluded: frozenset[str] = frozenset(),
) -> RouteRequest:
    try:
        return RouteRequest(
            model=model,
            needs=needs,
            input_tokens=input_tokens,
            max_output_tokens=max_output_tokens,
            excluded=excluded,
            objective=objective(options.objective),
            agent=options.agent,
            preferred_provider=options.preferred_provider,
            region=options.region,
            region_policy=_region_policy(options.region_policy),
            budget_usd=options.max_cost_usd if options.HasField("max_cost_usd") else inf,
            slo_s=seconds(options.latency_objective, "routing.latency_objective")
            if options.HasField("latency_objective")
            else inf,
        )
    except RequestError as error:
        raise InvalidRequestError(
            Violation(f"routing.{_FIELD_OF.get(error.field, error.field)}", str(error))
        ) from error


def route_request(request: router_pb2.RouteRequest) -> RouteRequest:
    """Return what the core needs to know of a Route call. Raises InvalidRequestError."""
    if not request.model:
        raise InvalidRequestError(Violation("model", "expected a canonical model id"))
    if unknown := [value for value in request.needs if value not in _CAPABILITIES]:
        raise InvalidRequestError(Violation("needs", f"{unknown[0]} is no Capability"))
    if request.input_tokens < 0:
        raise InvalidRequestError(Violation("input_tokens", "expected 0 or more"))
    return _route(
        request.model,
        request.routing,
        needs=frozenset(_CAPABILITIES[value] for value in request.needs),
        input_tokens=request.input_tokens,
        excluded=frozenset(request.excluded_endpoint_ids),
    )


def chat_completion(
    chat: chat_pb2.ChatRequest,
    options: routing_pb2.RoutingOptions,
    *,
    stream: bool,
    request_id: str,
    timeout_s: float | None,
    idempotency_key: str,
    caller: Caller,
) -> Completion:
    """Return a Complete or StreamComplete call as both edges know it. Raises InvalidRequestError naming each wrong
    field.
    """
    if not chat.model:
        raise InvalidRequestError(Violation("chat.model", "expected a canonical model id"))
    if not chat.messages:
        raise InvalidRequestError(Violation("chat.messages", "expected at least one message"))
    messages = [_message(message, f"chat.messages[{i}]") for i, message in enumerate(chat.messages)]
    fields: dict[str, msgspec.Raw] = {
        "model": msgspec.Raw(msgspec.json.encode(chat.model)),
        "messages": msgspec.Raw(msgspec.json.encode(messages)),
    }
    if chat.HasField("temperature"):
        fields["temperature"] = msgspec.Raw(msgspec.json.encode(chat.temperature))
    if chat.HasField("max_output_tokens"):
        fields["max_tokens"] = msgspec.Raw(msgspec.json.encode(chat.max_output_tokens))
    fields |= _extra(chat.extra_json, _MODELLED, "chat.extra_json")
    if stream:
        fields["stream"] = msgspec.Raw(b"true")
    return _completion(
        Operation.CHAT,
        fields,
        chat.model,
        options,
        stream=stream,
        request_id=request_id,
        timeout_s=timeout_s,
        idempotency_key=idempotency_key,
        caller=caller,
    )


def embedding(
    request: router_pb2.EmbedRequest, *, request_id: str, timeout_s: float | None, caller: Caller
) -> Completion:
    """Return an Embed call as both edges know it. Raises InvalidRequestError naming each wrong field."""
    if not request.model:
        raise InvalidRequestError(Violation("model", "expected a canonical model id"))
    if not request.inputs:
        raise InvalidRequestError(Violation("inputs", "expected at least one input"))
    fields = {
        "model": msgspec.Raw(msgspec.json.encode(request.model)),
        "input": msgspec.Raw(msgspec.json.encode(list(request.inputs))),
        **_extra(request.extra_json, ("model", "input", "encoding_format"), "extra_json"),
    }
    return _completion(
        Operation.EMBEDDINGS,
        fields,
        request.model,
        request.routing,
        stream=False,
        request_id=request_id,
        timeout_s=timeout_s,
        idempotency_key=request.idempotency_key,
        caller=caller,
    )


def _completion(
    operation: Operation,
    fields: Mapping[str, msgspec.Raw],
    model: str,
    options: routing_pb2.RoutingOptions,
    *,
    stream: bool,
    request_id: str,
    timeout_s: float | None,
    idempotency_key: str,
    caller: Caller,
) -> Completion:
    if options.truncation not in _TRUNCATIONS:
        raise InvalidRequestError(Violation("routing.truncation", f"{options.truncation} is no Truncation"))
    wanted = asked(operation, fields, stream=stream)
    route = _route(
        model,
        options,
        needs=wanted.needs,
        input_tokens=wanted.input_tokens,
        max_output_tokens=wanted.max_output_tokens,
    )
    return Completion(
        operation=operation,
        fields=fields,
        messages=wanted.messages,
        route=caller.asks(route),
        request_id=request_id,
        edge="grpc",
        stream=stream,
        idempotent=options.idempotent if options.HasField("idempotent") else True,
        timeout_s=timeout_s,
        session_id=options.session_id,
        idempotency_key=idempotency_key,
        truncation=_TRUNCATIONS[options.truncation],
        may_hedge=options.idempotent,
        continues=options.continue_stream,
    )
