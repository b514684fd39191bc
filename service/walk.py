"""One request's walk over endpoints: decide, attempt, observe, and either answer, go on, wait, or give up with the
right error.

The walk owns what unary and streamed requests share: attempts made, deadline, budgets, books. It sends nothing itself.
Should the discipline of attempts itself fail, the request goes on without it (F-20).
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from analytics.records import OUTRUN
from routing import attempts
from routing.actions import Finished
from routing.attempts import Patience, RequestBudget
from routing.hedging import Hedge, expected_cost_usd, hedge, in_scope
from routing.model import RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import Decision
from routing.snapshot import Candidate
from service.completion import Completion, Report
from service.errors import RequestTimeoutError, ServiceError
from service.history import AttemptSink
from service.providers.base import Failure
from service.providers.transport import Timeouts
from service.refusals import broken, exhausted, given_up, nobody_left, refusal, unsupported
from service.router import Decided, Router
from service.trail import NOT_COUNTED, Attempt, Enter, Trail, Usage

log = logging.getLogger(__name__)

_MIN_TIMEOUT_S = 0.001
_OUTRUN = "another attempt answered first"
_Answer = TypeVar("_Answer")


class Walk:
    """See the module's docstring. `record` takes history records and may not raise."""

    def __init__(self, router: Router, record: AttemptSink, enter: Enter, completion: Completion, replica: str) -> None:
        self._router = router
        self._completion = completion
        self._core = router.engine.policy
        self._policy = self._core.attempts
        now = router.clock.now()
        self._trail = Trail(completion, record, enter, now, replica)
        given_s, most_s = completion.timeout_s, self._policy.deadline_s
        limit_s = most_s if given_s is None else min(most_s, given_s)
        # Attempts are planned within what the caller waits for. With a key he means to come back for the answer, so the
        # last one may take longer.
        self._planned = RequestBudget(now + limit_s, completion.idempotent)
        self._budget = replace(self._planned, deadline=now + most_s) if completion.idempotency_key else self._planned
        self._tried: set[str] = set()
        self._patience = Patience()
        self._begun = 0
        self._has_emitted = False
        self._last: tuple[Attempt, Failure] | None = None
        self._unfit: list[Failure] = []

    # Going on.

    async def begin(self) -> Attempt:
        """Decide where the next attempt goes and start it, after a rate limit if need be. Raises the ServiceError that
        ends the request.
        """
        while True:
            decided = self._decide(self._route())
            chosen = decided.decision.chosen
            if chosen is None:
                await self._wait(decided)
                continue
            if self._last is not None and not self._may_retry(decided, self._last[0]):
                why = f"the retry budget of model {self._completion.route.model!r} is used up"
                raise self._end(exhausted(why, self._last[1], self._completion.route.model, self._trail.reports))
            return self._start(decided, chosen)

    def _route(self) -> RouteRequest:
        route = self._completion.route
        if not self._tried:
            return route
        spared: frozenset[str] = frozenset()
        if self._last is not None and not self._patience.has_waited:
            candidates = self._router.engine.snapshot.candidates(route.model)
            budget, now = self._core.budget, self._router.clock.now()
            spared = self._ask(lambda: attempts.spared_by_retries(candidates, budget, now), frozenset())
        return replace(route, excluded=route.excluded | self._patience.excluded(self._tried), spared=spared)

    def _decide(self, route: RouteRequest) -> Decided:
        first = not self._begun and not self._patience.has_waited
        try:
            decided = self._router.decide(route, self._completion.request_id, self._begun + 1)
        except ServiceError as error:
            raise self._end(error) from None
        if first:
            now, account = self._router.clock.now(), self._router.engine.budgets
            self._ask(lambda: account[route.model].requested(now), None)
        return decided

    def _may_retry(self, decided: Decided, left: Attempt) -> bool:
        if attempts.is_reroute(decided.decision, left.endpoint.id):
            return True
        account, now = self._router.engine.budgets, self._router.clock.now()
        return self._ask(lambda: account[self._completion.route.model].take_retry(now), default=True)

    async def _wait(self, decided: Decided) -> None:
        """Wait for a rate limit to end. Raises the ServiceError that ends the request when that does not help."""
        model, now = self._completion.route.model, self._router.clock.now()
        account, policy, draw = self._router.engine.budgets, self._core.budget, self._router.draw()

        def pause() -> float | None:
            pause_s = attempts.wait_s(decided.decision, self._patience, self._budget, policy, draw)
            return pause_s if pause_s is not None and account[model].take_place(now + pause_s, now) else None

        pause_s = self._ask(pause, None)
        if pause_s is None:
            raise self._end(self._nobody_left(decided.decision))
        try:
            await asyncio.sleep(pause_s)
        except asyncio.CancelledError:
            self._trail.unserved("CANCELLED", self._router.clock.now())
            raise
        self._patience.waited(pause_s, self._router.clock.now())

    def _nobody_left(self, decision: Decision) -> ServiceError:
        if self._last is None:
            return unsupported(decision, self._unfit, self._trail.reports) if self._unfit else refusal(decision)
        failure = self._last[1]
        if failure.outcome is Outcome.RATE_LIMITED:
            # The caller hears when the first limit ends, not the last one met.
            ends_in_s = self._ask(lambda: attempts.limit_ends_in_s(decision, self._patience), None)
            failure = replace(failure, retry_after_s=ends_in_s)
        return exhausted(nobody_left(decision), failure, self._completion.route.model, self._trail.reports)

    def _start(self, decided: Decided, chosen: Candidate, *, is_hedge: bool = False) -> Attempt:
        endpoint, now, streamed = chosen.facts.endpoint, self._router.clock.now(), self._completion.stream
        others_left = any(not c.exclusion and c.candidate is not chosen for c in decided.decision.considered)
        # Who may not be tried again after a timeout needs no time kept for it.
        can_move = others_left and self._completion.idempotent
        budget = self._planned if can_move and now < self._planned.deadline else self._budget
        first_byte_s = attempts.first_byte_timeout_s(budget, self._policy, now, streamed=streamed, others_left=can_move)
        if first_byte_s <= 0:
            raise self._end(RequestTimeoutError("the deadline has passed", attempts=self._trail.reports))
        timeouts = Timeouts(
            connect_s=max(_MIN_TIMEOUT_S, min(self._policy.connect_timeout_s, first_byte_s)),
            first_byte_s=max(_MIN_TIMEOUT_S, first_byte_s),
            stall_s=self._policy.stall_timeout_s,
        )
        self._begun += 1
        attempt_id = self._router.started(endpoint, now, streamed=streamed)
        prompt_tokens = self._completion.route.input_tokens
        attempt = Attempt(self._begun, decided, endpoint, attempt_id, now, timeouts, prompt_tokens, is_hedge=is_hedge)
        if not is_hedge and in_scope(self._core.hedge, asked=self._completion.may_hedge):
            delay_s = self._ask(lambda: self._hedge(attempt), Hedge(None)).delay_s
            attempt.hedge_after_s = delay_s if delay_s is not None and delay_s < first_byte_s else None
        return attempt

    @property
    def _sent(self) -> int:
        """How many of the attempts begun have been sent, or are to be: those that count."""
        return self._begun - len(self._unfit)

    # Hedges.

    def _hedge(self, attempt: Attempt) -> Hedge:
        engine = self._router.engine
        return hedge(
            attempt.decided.decision,
            engine.snapshot,
            engine.window_of(attempt.endpoint.id),
            self._core,
            idempotent=self._completion.idempotent,
            asked=self._completion.may_hedge,
            streamed=self._completion.stream,
        )

    def hedge(self, first: Attempt) -> Attempt | None:
        """The first attempt has kept its caller waiting: start a second one beside it, if there is where to and the
        budget pays for it.
        """
        return self._ask(lambda: self._second(first), None)

    def _second(self, first: Attempt) -> Attempt | None:
        engine, route, now = self._router.engine, self._completion.route, self._router.clock.now()
        account = engine.budgets[route.model]
        if self._sent >= self._policy.max_attempts or now >= self._budget.deadline or account.refusal_to_hedge(now):
            return None
        excluded = route.excluded | self._patience.excluded(self._tried) | {first.endpoint.id}
        spared = attempts.recovering(engine.snapshot.candidates(route.model))
        asked = replace(route, excluded=excluded, spared=spared)
        decided = self._router.decide(asked, self._completion.request_id, self._begun + 1)
        chosen = decided.decision.chosen
        if chosen is None or decided.decision.panic:
            return None
        cost_usd = expected_cost_usd(chosen.facts.endpoint, route, account.usual_output_tokens)
        return None if account.take_hedge(cost_usd, now) else self._start(decided, chosen, is_hedge=True)

    def outrun(self, attempt: Attempt) -> None:
        """Another attempt beside this one answered first, and this one was called off.

        Its provider has read the prompt, and is paid for that: the estimate goes into the books, for nobody will count.
        How long it had waited in vain is a bound of its latency that its health may know (a hedge's says little).
        """
        now, heard = self._router.clock.now(), "" if attempt.is_hedge else OUTRUN
        waited_s = None if attempt.is_hedge else now - attempt.started
        streamed = self._completion.stream
        ttft_s, reply_s = (waited_s, None) if streamed else (None, waited_s)
        self._finished(attempt, Outcome.CANCELLED, now, ttft_s=ttft_s, reply_s=reply_s)
        self._trail.attempted(attempt, Outcome.CANCELLED, now, heard=heard, error=_OUTRUN, usage=attempt.used)

    # Observing.

    def first_byte(self, attempt: Attempt) -> None:
        """A stream's first event with content arrived."""
        attempt.first_byte_at = now = self._router.clock.now()
        self._router.first_byte(attempt.endpoint, attempt.id, now)

    def emitted(self) -> None:
        """The caller gets the first event of a stream: from now on it can only break, or be continued."""
        self._has_emitted = True

    @property
    def used(self) -> Usage:
        """What the attempts have used that have ended."""
        return self._trail.used

    def succeeded(self, attempt: Attempt, status: int, dropped_messages: int) -> Report:
        """The attempt answered; close the books. `dropped_messages` had to go for the endpoint's context window."""
        now, first, usage = self._router.clock.now(), attempt.first_byte_at, attempt.counted
        if usage.input_tokens is None and attempt.pace is not None and self.used != NOT_COUNTED:
            usage = attempt.used  # beside estimates, to be silent about the rest would be the worse estimate
        self._finished(
            attempt,
            Outcome.OK,
            now,
            ttft_s=None if first is None else first - attempt.started,
            reply_s=now - attempt.started if first is None else None,
            output_tokens=usage.output_tokens or 0,
            generation_s=0.0 if first is None else max(0.0, now - first - attempt.reader_s),
        )
        self._trail.attempted(attempt, Outcome.OK, now, status=status, usage=usage)
        cost_usd, account = usage.cost_usd(attempt.endpoint), self._router.engine.budgets
        model, tokens = self._completion.route.model, usage.output_tokens or 0
        self._ask(lambda: account[model].served(cost_usd or 0.0, tokens, now), None)
        return self._trail.served(attempt, usage, dropped_messages, now)

    def failed(self, attempt: Attempt, failure: Failure, *, beside: bool = False, final: bool = False) -> None:
        """The attempt failed. Returns when another endpoint may be tried, or when another attempt is under way
        `beside` it; raises the ServiceError that ends the request otherwise. `final` forbids to go on: part of the
        answer is out, and cannot be continued elsewhere.
        """
        now = self._router.clock.now()
        heard = self._blame(attempt, failure.outcome, now)
        self._finished(attempt, heard, now, retry_after_s=failure.retry_after_s)
        usage = NOT_COUNTED if attempt.pace is None else attempt.used
        self._trail.attempted(
            attempt, failure.outcome, now, heard=heard.value, status=failure.status, error=failure.error, usage=usage
        )
        self._tried.add(attempt.endpoint.id)
        if failure.outcome is Outcome.UNSUPPORTED:
            self._unfit.append(failure)
            return
        self._last = attempt, failure
        self._patience.failed(attempt.endpoint.id, failure.outcome, failure.retry_after_s, now)
        if beside:
            return
        why = attempts.refusal_to_retry(failure.outcome, self._sent, final, self._budget, self._policy, now)
        if why:
            is_late, model = now >= self._budget.deadline, self._completion.route.model
            raise self._end(given_up(why, failure, model, self._trail.reports, is_late=is_late))

    def _blame(self, attempt: Attempt, outcome: Outcome, now: float) -> Outcome:
        """Return what the endpoint's health hears. A timeout by a caller's short deadline says nothing of the endpoint,
        unless the wait was long by the endpoint's own standards.
        """
        streamed = self._completion.stream
        patience_s = self._policy.ttft_timeout_s if streamed else self._policy.reply_timeout_s
        if outcome is not Outcome.TIMEOUT or attempt.timeouts.first_byte_s >= patience_s:
            return outcome
        return self._of_a_wait(attempt, now)

    def _of_a_wait(self, attempt: Attempt, now: float) -> Outcome:
        """Return what the endpoint's health hears of an attempt that its caller gave up."""
        engine, streamed = self._router.engine, self._completion.stream
        if attempt.first_byte_at is not None:
            return Outcome.CANCELLED
        limit_s = engine.blame_after_s(attempt.endpoint.id, now, streamed=streamed)
        return Outcome.TIMEOUT if now - attempt.started >= limit_s else Outcome.CANCELLED

    def cancelled(self, *under_way: Attempt) -> None:
        """The caller left. An endpoint that had kept them waiting for too long hears of it."""
        now = self._router.clock.now()
        for attempt in under_way:
            heard = self._of_a_wait(attempt, now)
            self._finished(attempt, heard, now)
            self._trail.attempted(
                attempt, Outcome.CANCELLED, now, heard=heard.value, error="the caller left", usage=attempt.used
            )
        self._trail.unserved("CANCELLED", now)

    def crashed(self, error: Exception, *under_way: Attempt) -> None:
        """Something of ours broke: close the books without blaming an endpoint."""
        now, what = self._router.clock.now(), f"internal error: {type(error).__name__}"
        for attempt in under_way:
            self._finished(attempt, Outcome.CANCELLED, now)
            self._trail.attempted(attempt, Outcome.CANCELLED, now, error=what, usage=attempt.used)
        self._trail.unserved(ServiceError.reason, now)

    def _finished(
        self,
        attempt: Attempt,
        outcome: Outcome,
        now: float,
        *,
        ttft_s: float | None = None,
        reply_s: float | None = None,
        output_tokens: int = 0,
        generation_s: float = 0.0,
        retry_after_s: float | None = None,
    ) -> None:
        result = Finished(
            attempt.endpoint.id,
            attempt.id,
            outcome,
            ttft_s=ttft_s,
            reply_s=reply_s,
            output_tokens=output_tokens,
            generation_s=generation_s,
            retry_after_s=retry_after_s,
            tenant=self._completion.route.tenant,
        )
        self._router.finished(attempt.endpoint, result, now)

    def _end(self, error: ServiceError) -> ServiceError:
        if self._has_emitted and self._last is not None:
            failure = self._last[1]
            error = broken(failure, self._trail.reports, error.message if len(self._trail) > 1 else "")
        self._trail.unserved(error.reason, self._router.clock.now())
        return error

    def _ask(self, question: Callable[[], _Answer], default: _Answer) -> _Answer:
        try:
            return question()
        except Exception:
            log.exception("the discipline of attempts failed; request %s goes on", self._completion.request_id)
            return default
