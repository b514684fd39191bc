"""From the core's values to protos; `requests` goes the other way. No proto goes past these two modules."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from routecast.v1 import chat_pb2, router_pb2, routing_pb2

from routing.health import State
from routing.model import Capability, Objective
from routing.outcomes import Outcome
from routing.pipeline import Considered
from scoring.reasons import Contribution
from service.completion import Continued, Report
from service.errors import AttemptReport
from service.providers.base import Chunk

_OBJECTIVE_VALUES = {o: routing_pb2.Objective.Value(f"OBJECTIVE_{o.name}") for o in Objective}
_CAPABILITY_VALUES = {c: routing_pb2.Capability.Value(f"CAPABILITY_{c.name}") for c in Capability}
_OUTCOME_VALUES = {o: routing_pb2.Outcome.Value(f"OUTCOME_{o.name}") for o in Outcome}
_STATE_VALUES = {s: routing_pb2.HealthState.Value(f"HEALTH_STATE_{s.name}") for s in State}
_ROLE_VALUES = {
    name: chat_pb2.Role.Value(f"ROLE_{name.upper()}") for name in ("system", "developer", "user", "assistant", "tool")
}
_Peeked = TypeVar("_Peeked")


_NULL = msgspec.Raw(b"null")


class _Message(msgspec.Struct):
    role: Any = None
    content: Any = None


class _ReplyChoice(msgspec.Struct):
    index: int = 0
    message: msgspec.Raw = _NULL
    finish_reason: Any = None


class _Reply(msgspec.Struct):
    id: Any = None
    model: Any = None
    choices: list[_ReplyChoice] | None = None


class _DeltaChoice(msgspec.Struct):
    index: int = 0
    delta: _Message | None = None
    finish_reason: Any = None


class _Event(msgspec.Struct):
    choices: list[_DeltaChoice] | None = None


class _EmbeddingItem(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _Embeddings(msgspec.Struct):
    data: list[_EmbeddingItem] = []


_REPLY, _EVENT = msgspec.json.Decoder(_Reply), msgspec.json.Decoder(_Event)
_EMBEDDINGS, _MESSAGE = msgspec.json.Decoder(_Embeddings), msgspec.json.Decoder(_Message)


def duration(seconds: float) -> Duration:
    """Return a Duration, to the microsecond."""
    value = Duration()
    value.FromMicroseconds(round(seconds * 1e6))
    return value


def timestamp(unix_s: float) -> Timestamp:
    """Return a Timestamp, to the microsecond."""
    value = Timestamp()
    value.FromMicroseconds(round(unix_s * 1e6))
    return value


def _text(value: Any) -> str:
    """Return a string of a reply, "" for whatever else a provider put there."""
    return value if isinstance(value, str) else ""


def _peek(decoder: msgspec.json.Decoder[_Peeked], body: bytes, otherwise: _Peeked) -> _Peeked:
    """Return what the proto models of a reply. One of an odd shape was served all the same: `raw_json` has it whole."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return otherwise


def attempts_to_proto(attempts: Iterable[AttemptReport]) -> list[routing_pb2.Attempt]:
    """Return the attempts of a request."""
    return [
        routing_pb2.Attempt(
            number=attempt.number,
            endpoint_id=attempt.endpoint_id,
            provider=attempt.provider,
            region=attempt.region,
            outcome=_OUTCOME_VALUES[attempt.outcome],
            http_status=attempt.http_status or 0,
            error=attempt.error,
            latency=duration(attempt.latency_s),
            decision_id=attempt.decision_id,
            hedge=attempt.hedge,
            input_tokens=attempt.input_tokens,
            output_tokens=attempt.output_tokens,
            cost_usd=attempt.cost_usd,
            estimated=attempt.estimated,
        )
        for attempt in attempts
    ]


def report_to_proto(report: Report) -> routing_pb2.RoutingReport:
    """Return what serving a request took."""
    return routing_pb2.RoutingReport(
        request_id=report.request_id,
        endpoint_id=report.endpoint.id,
        provider=report.endpoint.provider,
        region=report.endpoint.region,
        provider_model=report.endpoint.provider_model,
        attempts=attempts_to_proto(report.attempts),
        failed_over=report.failed_over,
        input_usd_per_mtok=report.endpoint.input_usd_per_mtok,
        output_usd_per_mtok=report.endpoint.output_usd_per_mtok,
        cost_usd=report.cost_usd,
        session_id=report.session_id,
        finish_time=timestamp(report.time),
        dropped_messages=report.dropped_messages,
        replayed=report.replayed,
    )


def continued_to_proto(continued: Continued) -> router_pb2.StreamContinued:
    """Return the mark of where a stream goes on elsewhere."""
    return router_pb2.StreamContinued(
        endpoint_id=continued.endpoint.id,
        provider=continued.endpoint.provider,
        attempt_number=continued.number,
        decision_id=continued.decision_id,
    )


def usage_to_proto(input_tokens: int | None, output_tokens: int | None) -> chat_pb2.Usage:
    """Return token counts, 0 for unknown ones."""
    return chat_pb2.Usage(input_tokens=input_tokens or 0, output_tokens=output_tokens or 0)


def reply_to_proto(body: bytes, report: Report) -> router_pb2.CompleteResponse:
    """Return a whole reply; what the proto does not model is in `raw_json`."""
    reply = _peek(_REPLY, body, _Reply())
    return router_pb2.CompleteResponse(
        id=_text(reply.id),
        provider_model=_text(reply.model),
        choices=[
            chat_pb2.ChatChoice(
                index=choice.index,
                message=_message_to_proto(choice.message),
                finish_reason=_text(choice.finish_reason),
            )
            for choice in reply.choices or ()
        ],
        usage=usage_to_proto(report.input_tokens, report.output_tokens),
        routing=report_to_proto(report),
        raw_json=body,
    )


def _message_to_proto(raw: msgspec.Raw) -> chat_pb2.ChatMessage:
    message = _peek(_MESSAGE, raw, _Message())
    role = _ROLE_VALUES.get(_text(message.role), chat_pb2.ROLE_UNSPECIFIED)
    return chat_pb2.ChatMessage(role=role, text=_text(message.content), raw_json=bytes(raw))


def chunk_to_proto(chunk: Chunk) -> chat_pb2.ChatChunk:
    """Return one event of a stream."""
    event = _peek(_EVENT, chunk.data, _Event())
    return chat_pb2.ChatChunk(
        deltas=[
            chat_pb2.ChoiceDelta(
                index=choice.index,
                text=_text(choice.delta.content) if choice.delta else "",
                finish_reason=_text(choice.finish_reason),
            )
            for choice in event.choices or ()
        ],
        usage=usage_to_proto(chunk.input_tokens, chunk.output_tokens) if chunk.input_tokens is not None else None,
        raw_json=chunk.data,
    )


def embeddings_to_proto(body: bytes, report: Report) -> router_pb2.EmbedResponse:
    """Return embeddings as floats."""
    return router_pb2.EmbedResponse(
        embeddings=[
            router_pb2.Embedding(index=e.index, values=e.embedding)
            for e in _peek(_EMBEDDINGS, body, _Embeddings()).data
        ],
        usage=usage_to_proto(report.input_tokens, report.output_tokens),
        routing=report_to_proto(report),
        raw_json=body,
    )


def candidate_to_proto(
    considered: Considered, base_url: str, reasons: tuple[Contribution, ...] = ()
) -> routing_pb2.Candidate:
    """Return one candidate of a decision, with what had raised its risk."""
    facts = considered.candidate.facts
    return routing_pb2.Candidate(
        endpoint_id=facts.endpoint.id,
        provider=facts.endpoint.provider,
        region=facts.endpoint.region,
        zone=facts.endpoint.zone,
        provider_model=facts.endpoint.provider_model,
        base_url=base_url,
        state=_STATE_VALUES[facts.state],
        share=considered.share,
        score=considered.candidate.score,
        risk=facts.risk,
        exclusion=considered.exclusion,
        contributions=considered.candidate.contributions,
        median_latency=None if facts.latency_s is None else duration(facts.latency_s),
        risk_reasons=[
            routing_pb2.RiskReason(
                group=reason.group,
                log_odds=reason.log_odds,
                figures=[routing_pb2.RiskFigure(name=f.name, value=f.value, normal=f.normal) for f in reason.figures],
            )
            for reason in reasons
        ],
    )


def state_to_proto(state: State) -> routing_pb2.HealthState.ValueType:
    """Return the proto's state of the health machine."""
    return _STATE_VALUES[state]


def outcome_to_proto(outcome: Outcome) -> routing_pb2.Outcome.ValueType:
    """Return the proto's outcome."""
    return _OUTCOME_VALUES[outcome]


def objective_to_proto(value: Objective) -> routing_pb2.Objective.ValueType:
    """Return the proto's objective."""
    return _OBJECTIVE_VALUES[value]


def model_to_proto(model: str, endpoints: Iterable[Any], states: Mapping[str, State]) -> router_pb2.Model:
    """Return a model with its endpoints and their health."""
    return router_pb2.Model(
        id=model,
        endpoints=[
            router_pb2.ModelEndpoint(
                endpoint_id=e.id,
                provider=e.provider,
                region=e.region,
                zone=e.zone,
                provider_model=e.provider_model,
                state=_STATE_VALUES[states[e.id]],
                capabilities=sorted(_CAPABILITY_VALUES[c] for c in e.capabilities),
                context_window_tokens=e.context_window_tokens or 0,
                input_usd_per_mtok=e.input_usd_per_mtok,
                output_usd_per_mtok=e.output_usd_per_mtok,
            )
            for e in endpoints
        ],
    )
