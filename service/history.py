"""From what the router decides and learns to the rows of the history. Writing them is the HistoryWriter's thread's
business.
"""

from collections.abc import Callable

import msgspec

from analytics.records import AttemptRecord, DecisionRecord, Record, RequestRecord, TransitionRecord
from routing.engine import Finished, Transitioned
from routing.model import Endpoint
from service.router import Decided

Sink = Callable[[Record], None]


def fan_out(*sinks: Sink) -> Sink:
    """Return a sink that hands each record to all of `sinks`."""

    def put(record: Record) -> None:
        for sink in sinks:
            sink(record)

    return put


class HistoryListener:
    """Turns decisions and transitions into records."""

    def __init__(self, sink: Sink, replica: str) -> None:
        self._sink = sink
        self._replica = replica

    def decided(self, decided: Decided) -> None:
        """Record a decision with all its candidates."""
        decision, request = decided.decision, decided.decision.request
        candidates = [
            {
                "endpoint": c.candidate.facts.endpoint.id,
                "state": c.candidate.facts.state.value,
                "score": c.candidate.score,
                "admission": c.candidate.facts.admission,
                "risk": c.candidate.facts.risk,
                "share": c.share,
                "contributions": c.candidate.contributions,
                "exclusion": c.exclusion,
            }
            for c in decision.considered
        ]
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
                candidates=msgspec.json.encode(candidates).decode(),
            )
        )

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


AttemptSink = Callable[[AttemptRecord | RequestRecord], None]
