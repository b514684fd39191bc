"""One request's walk over endpoints: decide, attempt, observe, and either answer, go on, or give up with the right
error.

The walk owns the bookkeeping that unary and streamed requests share: attempts made, deadline, records. It sends
nothing itself.
"""

import logging
from dataclasses import dataclass

from analytics.records import RequestRecord
from routing.actions import Finished
from routing.attempts import RequestBudget, first_byte_timeout_s, refusal_to_retry
from routing.filters import already_tried, beyond_context, lacks_capability
from routing.model import Endpoint
from routing.outcomes import Outcome
from routing.pipeline import Decision
from routing.policy import AttemptPolicy
from service.completion import Completion, Report
from service.errors import (
    AttemptReport,
    AttemptsExhaustedError,
    ContextTooLongError,
    InvalidRequestError,
    NoEndpointError,
    RateLimitedError,
    RequestTimeoutError,
    ServiceError,
    StreamBrokenError,
    UpstreamRejectedError,
    Violation,
)
from service.history import AttemptSink, attempt_record, cost_usd
from service.providers.base import Failure, Operation
from service.providers.transport import Timeouts
from service.router import Decided, Router, without

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0
_MIN_TIMEOUT_S = 0.001


@dataclass(slots=True)
class Attempt:
    """One call in flight. `reader_s` is how long a stream had to wait for its reader."""

    number: int
    decided: Decided
    endpoint: Endpoint
    id: str
    started: float
    timeouts: Timeouts
    first_byte_at: float | None = None
    reader_s: float = 0.0


class Walk:
    """See the module's docstring. `record` takes history records and may not raise."""

    def __init__(
        self,
        router: Router,
        record: AttemptSink,
        completion: Completion,
        policy: AttemptPolicy,
        replica: str,
    ) -> None:
        self._router = router
        self._record = record
        self._completion = completion
        self._policy = policy
        self._replica = replica
        self._started = router.clock.now()
        limit_s = policy.deadline_s if completion.timeout_s is None else min(policy.deadline_s, completion.timeout_s)
        self._budget = RequestBudget(self._started + limit_s, completion.idempotent)
        self._route = completion.route
        self._trail: list[AttemptReport] = []
        self._last_failure: Failure | None = None

    def begin(self) -> Attempt:
        """Decide where the next attempt goes and start it. Raises the ServiceError that ends the request."""
        try:
            decided = self._router.decide(self._route, self._completion.request_id, len(self._trail) + 1)
        except ServiceError as error:
            self._ended(error.reason, None)
            raise
        chosen = decided.decision.chosen
        if chosen is None:
            raise self._end(self._nobody_left(decided))
        endpoint, now = chosen.facts.endpoint, self._router.clock.now()
        others_left = any(not c.exclusion and c.candidate is not chosen for c in decided.decision.considered)
        first_byte_s = first_byte_timeout_s(
            self._budget, self._policy, now, streamed=self._completion.stream, others_left=others_left
        )
        if first_byte_s <= 0:
            raise self._end(RequestTimeoutError("the deadline has passed", attempts=self._trail))
        timeouts = Timeouts(
            connect_s=max(_MIN_TIMEOUT_S, min(self._policy.connect_timeout_s, first_byte_s)),
            first_byte_s=max(_MIN_TIMEOUT_S, first_byte_s),
            stall_s=self._policy.stall_timeout_s,
        )
        attempt_id = self._router.started(endpoint, streamed=self._completion.stream)
        return Attempt(len(self._trail) + 1, decided, endpoint, attempt_id, now, timeouts)

    def first_byte(self, attempt: Attempt) -> None:
        """A stream's first event with content arrived."""
        attempt.first_byte_at = self._router.clock.now()
        self._router.first_byte(attempt.endpoint, attempt.id)

    def succeeded(self, attempt: Attempt, status: int, input_tokens: int | None, output_tokens: int | None) -> Report:
        """The attempt answered; close the books."""
        now = self._router.clock.now()
        first = attempt.first_byte_at
        self._router.finished(
            attempt.endpoint,
            Finished(
                attempt.endpoint.id,
                attempt.id,
                Outcome.OK,
                ttft_s=None if first is None else first - attempt.started,
                reply_s=now - attempt.started if first is None else None,
                output_tokens=output_tokens or 0,
                generation_s=0.0 if first is None else max(0.0, now - first - attempt.reader_s),
            ),
        )
        price_usd = cost_usd(attempt.endpoint, input_tokens, output_tokens)
        self._note(attempt, Outcome.OK, status, "", now, (input_tokens, output_tokens, price_usd))
        self._ended("ok", attempt, (input_tokens, output_tokens, price_usd))
        return Report(
            self._completion.request_id,
            attempt.endpoint,
            tuple(self._trail),
            input_tokens,
            output_tokens,
            price_usd,
            self._completion.session_id,
            now,
        )

    def failed(self, attempt: Attempt, failure: Failure, *, emitted: bool = False) -> None:
        """The attempt failed. Returns when another endpoint may be tried; raises the ServiceError that ends the
        request otherwise.
        """
        now = self._router.clock.now()
        heard = self._blame(attempt, failure.outcome, now)
        result = Finished(attempt.endpoint.id, attempt.id, heard, retry_after_s=failure.retry_after_s)
        self._router.finished(attempt.endpoint, result)
        self._note(attempt, failure.outcome, failure.status, failure.error, now)
        self._last_failure = failure
        self._route = without(self._route, attempt.endpoint.id)
        refusal = refusal_to_retry(failure.outcome, len(self._trail), emitted, self._budget, self._policy, now)
        if refusal:
            raise self._end(self._given_up(refusal, failure, emitted=emitted))

    def _blame(self, attempt: Attempt, outcome: Outcome, now: float) -> Outcome:
        """Return what the endpoint's health hears. A timeout by a caller's short deadline says nothing of the endpoint,
        unless the wait was long by the endpoint's own standards.
        """
        streamed = self._completion.stream
        patience_s = self._policy.ttft_timeout_s if streamed else self._policy.reply_timeout_s
        if outcome is not Outcome.TIMEOUT or attempt.timeouts.first_byte_s >= patience_s:
            return outcome
        limit_s = self._router.engine.hang_limit_s(attempt.endpoint.id, now, streamed=streamed)
        return outcome if limit_s is not None and now - attempt.started >= limit_s else Outcome.CANCELLED

    def cancelled(self, attempt: Attempt) -> None:
        """The caller left."""
        now = self._router.clock.now()
        self._router.finished(attempt.endpoint, Finished(attempt.endpoint.id, attempt.id, Outcome.CANCELLED))
        self._note(attempt, Outcome.CANCELLED, None, "the caller left", now)
        self._ended("CANCELLED", attempt)

    def crashed(self, attempt: Attempt, error: Exception) -> None:
        """Something of ours broke during the attempt: close the books without blaming the endpoint."""
        now = self._router.clock.now()
        self._router.finished(attempt.endpoint, Finished(attempt.endpoint.id, attempt.id, Outcome.CANCELLED))
        self._note(attempt, Outcome.CANCELLED, None, f"internal error: {type(error).__name__}", now)
        self._ended(ServiceError.reason, attempt)

    def _end(self, error: ServiceError) -> ServiceError:
        self._ended(error.reason, None)
        return error

    def _given_up(self, refusal: str, failure: Failure, *, emitted: bool) -> ServiceError:
        what = f"{failure.outcome.value}: {failure.error}"
        if emitted:
            return StreamBrokenError(f"the stream broke ({what})", attempts=self._trail, retry_after_s=RETRY_AFTER_S)
        if failure.outcome is Outcome.CLIENT_ERROR:
            return UpstreamRejectedError(
                failure.status or 400, failure.body, failure.headers, failure.error, attempts=self._trail
            )
        if self._router.clock.now() >= self._budget.deadline:
            return RequestTimeoutError(f"the deadline has passed; last attempt {what}", attempts=self._trail)
        return self._exhausted(refusal)

    def _exhausted(self, why: str) -> ServiceError:
        listed = ", ".join(f"{a.endpoint_id} {a.outcome.value}" for a in self._trail)
        retry_after_s = self._last_failure.retry_after_s if self._last_failure else None
        kind = (
            RateLimitedError if all(a.outcome is Outcome.RATE_LIMITED for a in self._trail) else AttemptsExhaustedError
        )
        return kind(
            f"no endpoint of {self._route.model!r} could serve the request ({why}); attempts: {listed}",
            attempts=self._trail,
            retry_after_s=retry_after_s or RETRY_AFTER_S,
        )

    def _nobody_left(self, decided: Decided) -> ServiceError:
        return self._exhausted("no other endpoint is left") if self._trail else refusal(decided.decision)

    # Records.

    def _note(
        self,
        attempt: Attempt,
        outcome: Outcome,
        status: int | None,
        error: str,
        now: float,
        usage: tuple[int | None, int | None, float | None] = (None, None, None),
    ) -> None:
        endpoint, route = attempt.endpoint, self._completion.route
        latency_s = now - attempt.started
        self._trail.append(
            AttemptReport(
                attempt.number,
                attempt.decided.id,
                endpoint.id,
                endpoint.provider,
                endpoint.region,
                outcome,
                status,
                error,
                latency_s,
            )
        )
        first = attempt.first_byte_at
        self._record(
            attempt_record(
                endpoint,
                replica=self._replica,
                kind="live",
                outcome=outcome,
                started=attempt.started,
                now=now,
                number=attempt.number,
                request_id=self._completion.request_id,
                decision_id=attempt.decided.id,
                agent=route.agent,
                tenant=route.tenant,
                http_status=status,
                error=error,
                ttft_s=None if first is None else first - attempt.started,
                input_tokens=usage[0],
                output_tokens=usage[1],
            )
        )

    def _ended(
        self,
        status: str,
        attempt: Attempt | None,
        usage: tuple[int | None, int | None, float | None] = (None, None, None),
    ) -> None:
        now, completion = self._router.clock.now(), self._completion
        served = attempt.endpoint if attempt is not None and status == "ok" else None
        first = attempt.first_byte_at if attempt is not None else None
        method = (
            "embed" if completion.operation is Operation.EMBEDDINGS else "stream" if completion.stream else "complete"
        )
        self._record(
            RequestRecord(
                replica=self._replica,
                time=now,
                request_id=completion.request_id,
                edge=completion.edge,
                method=method,
                model=completion.route.model,
                agent=completion.route.agent,
                tenant=completion.route.tenant,
                session_id=completion.session_id,
                endpoint=served.id if served else "",
                provider=served.provider if served else "",
                region=served.region if served else "",
                status=status,
                attempts=len(self._trail),
                failed_over=len(self._trail) > 1,
                ttft_ms=None if first is None else (first - self._started) * 1e3,
                latency_ms=(now - self._started) * 1e3,
                input_tokens=usage[0],
                output_tokens=usage[1],
                cost_usd=usage[2],
            )
        )


def refusal(decision: Decision) -> ServiceError:
    """Return the error for a first decision that found no endpoint."""
    reasons = "; ".join(f"{c.candidate.facts.endpoint.id}: {c.exclusion}" for c in decision.considered)
    excluders = {c.excluded_by for c in decision.considered} - {already_tried.__name__}
    message = f"no endpoint of {decision.request.model!r} may serve the request: {reasons}"
    if decision.retry_after_s is not None:
        return RateLimitedError(message, retry_after_s=decision.retry_after_s)
    if beyond_context.__name__ in excluders:
        return ContextTooLongError(message)
    if excluders == {lacks_capability.__name__}:
        return InvalidRequestError(Violation("model", message))
    return NoEndpointError(message, retry_after_s=RETRY_AFTER_S)
