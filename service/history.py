"""From what the router decides and learns to the rows of the history. Writing them is the HistoryWriter's thread's
business.
"""

from collections.abc import Callable

import msgspec

from analytics.records import AttemptRecord, DecisionRecord, DomainRecord, Record, RequestRecord, TransitionRecord
from routing.actions import DomainChanged, Finished, Transitioned
from routing.model import Endpoint
from routing.outcomes import Outcome
from routing.pipeline import Considered, Decision, Plan
from service.router import Decided

Sink = Callable[[Record], None]


def fan_out(*sinks: Sink) -> Sink:
    """Return a sink that hands each record to all of `sinks`."""

    def put(record: Record) -> None:
        for sink in sinks:
            sink(record)

    return put


def attempt_record(
    endpoint: Endpoint,
    *,
    replica: str,
    kind: str,
    outcome: Outcome,
    started: float,
    now: float,
    latency_s: float | None = None,
    streamed: bool = False,
    heard: str = "",
    number: int = 1,
    request_id: str = "",
    decision_id: str = "",
    agent: str = "",
    tenant: str = "",
    http_status: int | None = None,
    error: str = "",
    ttft_s: float | None = None,
    generation_s: float | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
) -> AttemptRecord:
    """Return the record of one attempt at `endpoint` that ended at `now`; its price follows from the tokens.

    `latency_s` is from `started` to `now` unless somebody else measured it. `heard` is what the endpoint's health took
    it for: its outcome, unless something else is said.
    """
    return AttemptRecord(
        replica=replica,
        time=now,
        started=started,
        request_id=request_id,
        decision_id=decision_id,
        number=number,
        kind=kind,
        endpoint=endpoint.id,
        provider=endpoint.provider,
        region=endpoint.region,
        zone=endpoint.zone,
        model=endpoint.model,
        agent=agent,
        tenant=tenant,
        outcome=outcome.value,
        http_status=http_status,
        error=error,
        ttft_ms=None if ttft_s is None else ttft_s * 1e3,
        latency_ms=(now - started if latency_s is None else latency_s) * 1e3,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost_usd=cost_usd(endpoint, input_tokens, output_tokens),
        generation_ms=None if generation_s is None else generation_s * 1e3,
        streamed=streamed,
        heard=heard or outcome.value,
    )


def cost_usd(endpoint: Endpoint, input_tokens: int | None, output_tokens: int | None) -> float | None:
    """Return the price of one call in USD, None when the tokens are not known."""
    if input_tokens is None:
        return None
    usd_per_million = input_tokens * endpoint.input_usd_per_mtok + (output_tokens or 0) * endpoint.output_usd_per_mtok
    return usd_per_million / 1_000_000


class HistoryListener:
    """Turns decisions and transitions into records."""

    def __init__(self, sink: Sink, replica: str) -> None:
        self._sink = sink
        self._replica = replica
        self._version = 0
        self._written: dict[int, tuple[Plan, str]] = {}

    def decided(self, decided: Decided) -> None:
        """Record a decision with all its candidates."""
        decision, request = decided.decision, decided.decision.request
        self._sink(
            DecisionRecord(
                replica=self._replica,
                time=decision.time,
                decision_id=decided.id,
                request_id=decided.request_id,
                number=decided.number,
                snapshot_version=decision.snapshot_version,
                model=request.model,
                agent=request.agent,
                tenant=request.tenant,
                objective=request.objective.value,
                chosen=decision.chosen.facts.endpoint.id if decision.chosen else "",
                draw=decision.draw,
                propensity=decision.propensity,
                candidates=self._candidates(decision),
            )
        )

    def _candidates(self, decision: Decision) -> str:
        """Return all that were considered, as JSON: written once per plan, for decisions are many and plans are few."""
        if decision.snapshot_version != self._version:
            self._version = decision.snapshot_version
            self._written.clear()
        plan = decision.plan
        if id(plan) not in self._written:
            # The plan beside its text: while it is kept, no other one has its id.
            self._written[id(plan)] = plan, msgspec.json.encode([_candidate(c) for c in plan.considered]).decode()
        return self._written[id(plan)][1]

    def started(self, endpoint: Endpoint, attempt_id: str, now: float, *, streamed: bool) -> None:
        """Nothing: an attempt is recorded when it ends."""

    def first_byte(self, endpoint: Endpoint, attempt_id: str, now: float) -> None:
        """Nothing: an attempt is recorded when it ends."""

    def finished(self, endpoint: Endpoint, result: Finished, now: float) -> None:
        """Nothing: whoever made the attempt records it with what only they know."""

    def transitioned(self, action: Transitioned) -> None:
        """Record a change of health."""
        transition, endpoint = action.transition, action.endpoint
        self._sink(
            TransitionRecord(
                replica=self._replica,
                time=transition.time,
                endpoint=endpoint.id,
                provider=endpoint.provider,
                region=endpoint.region,
                model=endpoint.model,
                from_state=transition.from_state.value,
                to_state=transition.to_state.value,
                event=transition.event.value,
                metric=transition.cause.metric,
                value=transition.cause.value,
                threshold=transition.cause.threshold,
                actor=transition.actor.value,
                note=transition.note,
                snapshot_version=action.snapshot_version,
            )
        )

    def domain_changed(self, action: DomainChanged) -> None:
        """Record the outage of a failure domain, or its end."""
        self._sink(
            DomainRecord(
                replica=self._replica,
                time=action.time,
                kind=action.domain.kind.value,
                domain=action.domain.name,
                state="down" if action.is_down else "up",
                endpoints=msgspec.json.encode(action.endpoint_ids).decode(),
                snapshot_version=action.snapshot_version,
            )
        )


AttemptSink = Callable[[AttemptRecord | RequestRecord], None]


def _candidate(considered: Considered) -> dict[str, object]:
    candidate, facts = considered.candidate, considered.candidate.facts
    return {
        "endpoint": facts.endpoint.id,
        "state": facts.state.value,
        "score": candidate.score,
        "admission": facts.admission,
        "risk": facts.risk,
        "share": considered.share,
        "contributions": candidate.contributions,
        "exclusion": considered.exclusion,
    }
