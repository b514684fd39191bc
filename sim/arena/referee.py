"""The referee: stands between the arena and a policy, and stops the run when either breaks a rule.

The rule of this file: it books what happens by itself and believes nobody. Each rule is broken on purpose
by a test.
"""

from collections import deque
from collections.abc import Collection, Sequence
from math import inf, isfinite

from routing.outcomes import Outcome
from sim.arena.policy import ArenaRequest, Attempted, Policy, RetryLimit

_SLOTS = 10


class ArenaInvariantError(AssertionError):
    """A policy or the arena broke a rule that must hold in every run."""


class _Book:
    """What is known of one request: its attempts under way by id, and who answered."""

    __slots__ = ("answered_by", "ended", "hedges", "request", "running", "sent")

    def __init__(self, request: ArenaRequest) -> None:
        self.request = request
        self.running: dict[str, int] = {}
        self.sent: list[int] = []
        self.ended: list[Attempted] = []
        self.hedges = 0
        self.answered_by = ""


class _Retries:
    """Requests and retries of the last ten slots, for comparison with a declared budget."""

    __slots__ = ("_budget", "_slots")

    def __init__(self, budget: RetryLimit) -> None:
        self._budget = budget
        self._slots: deque[tuple[int, int, int]] = deque()

    def count(self, now: float, requests: int, retries: int) -> None:
        """Count; raise ArenaInvariantError when the budget does not cover it."""
        slots, slot, budget = self._slots, int(now * _SLOTS / self._budget.window_s), self._budget
        while slots and slots[0][0] <= slot - _SLOTS:
            slots.popleft()
        if not slots or slots[-1][0] < slot:
            slots.append((slot, 0, 0))
        _, sent, spent = slots[-1]
        slots[-1] = (slot, sent + requests, spent + retries)
        if retries:
            sent, spent = sum(row[1] for row in slots), sum(row[2] for row in slots)
            if spent > budget.share * sent + budget.floor:
                raise ArenaInvariantError(
                    f"{spent} retries for {sent} requests in {budget.window_s:g} s until {now:g} s: beyond the budget"
                )


class Referee(Policy):
    """`policy`, watched. The rules: time is finite and does not go back; endpoints exist; a request is sent only before
    its deadline, never again once a token has come, at most `limits.max_attempts` times, and never twice if that is not
    harmless; it is hedged once at most, beside an attempt that waits, elsewhere; one attempt answers it; every attempt
    ends once, the losers of a hedge as cancelled; retries stay within the declared budget; waits are finite.
    """

    def __init__(self, policy: Policy, endpoints: int) -> None:
        self._policy = policy
        self._endpoints = range(endpoints)
        self._books: dict[int, _Book] = {}
        self._by_id: dict[str, _Book] = {}
        self._next: _Book | None = None
        self._retries = _Retries(policy.limits.retries) if policy.limits.retries else None
        self._now = -inf
        self._probing: dict[int, int] = {}
        self.name = policy.name
        self.stall_timeout_s = policy.stall_timeout_s
        self.probe_timeout_s = policy.probe_timeout_s
        self.tick_s = policy.tick_s
        self.limits = policy.limits

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        """Nothing else may be under way, nobody may have answered."""
        book = self._books.get(request.number)
        if book is None:
            book = self._books[request.number] = _Book(request)
            if self._retries:
                self._retries.count(now, requests=1, retries=0)
        self._may_send(book, tried, now)
        if book.running:
            raise ArenaInvariantError(f"request {request.number} is routed while it is being served")
        return self._chosen(book, self._policy.route(request, tried, now, draw))

    def hedge(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        """One attempt must be waiting, and no other may have been made beside one."""
        book, number = self._books[request.number], request.number
        self._may_send(book, tried, now)
        if len(book.running) != 1:
            raise ArenaInvariantError(f"request {number} is hedged with {len(book.running)} attempts under way")
        if not request.idempotent:
            raise ArenaInvariantError(f"request {number} is hedged, though running it twice does harm")
        endpoint = self._policy.hedge(request, tried, now, draw)
        if endpoint is not None:
            book.hedges += 1
            if book.hedges > 1:
                raise ArenaInvariantError(f"request {number} is hedged a second time")
            if endpoint in book.running.values():
                raise ArenaInvariantError(f"request {number} is hedged where it already waits")
        return self._chosen(book, endpoint)

    def _may_send(self, book: _Book, tried: Sequence[int], now: float) -> None:
        self._pass(now)
        number = book.request.number
        if not now < book.request.deadline:
            raise ArenaInvariantError(f"request {number} is sent at {now:g} s, after its deadline")
        if book.answered_by:
            raise ArenaInvariantError(f"request {number} is sent again after its first token")
        if tried != book.sent:
            raise ArenaInvariantError(f"request {number} was sent to {book.sent}, not to {list(tried)}")

    def _chosen(self, book: _Book, endpoint: int | None) -> int | None:
        if endpoint is not None:
            number, most = book.request.number, self.limits.max_attempts
            if most is not None and len(book.sent) >= most:
                raise ArenaInvariantError(f"request {number} is sent more than {most} times")
            if endpoint not in self._endpoints:
                raise ArenaInvariantError(f"request {number} is sent to endpoint {endpoint}, which does not exist")
        self._next = None if endpoint is None else book
        return endpoint

    def wait_s(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
        """A wait must take time, and end."""
        delay_s = self._delay(request, self._policy.wait_s(request, made, now, draw))
        if delay_s == 0:
            raise ArenaInvariantError(f"request {request.number} is to wait for nothing")
        return delay_s

    def patience_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float:
        """An attempt must get some time."""
        patience_s = self._policy.patience_s(request, tried, now)
        if not 0 < patience_s < inf:
            raise ArenaInvariantError(f"an attempt of request {request.number} may wait {patience_s} s")
        return patience_s

    def hedge_after_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float | None:
        """As every wait."""
        return self._delay(request, self._policy.hedge_after_s(request, tried, now))

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
        """A retry must be paid for by the budget, unless it leaves what nobody is sent to any more."""
        self._pass(now)
        book = self._books[request.number]
        if made != book.ended or book.running:
            raise ArenaInvariantError(f"request {request.number} is retried while it is being served")
        if book.answered_by:
            raise ArenaInvariantError(f"request {request.number} is retried after its first token")
        delay_s = self._delay(request, self._policy.retry(request, made, now, draw))
        if delay_s is not None and self._retries and not self._policy.is_reroute(made, now):
            self._retries.count(now, requests=0, retries=1)
        return delay_s

    def is_reroute(self, made: Sequence[Attempted], now: float) -> bool:
        """As the policy says."""
        return self._policy.is_reroute(made, now)

    @staticmethod
    def _delay(request: ArenaRequest, delay_s: float | None) -> float | None:
        if delay_s is not None and not 0 <= delay_s < inf:
            raise ArenaInvariantError(f"request {request.number} is to wait {delay_s} s")
        return delay_s

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        """An attempt follows a choice, and has an id of its own."""
        self._pass(now)
        book, self._next = self._next, None
        if book is None:
            raise ArenaInvariantError(f"attempt {attempt_id} was not chosen")
        if attempt_id in self._by_id:
            raise ArenaInvariantError(f"attempt {attempt_id} starts twice")
        book.sent.append(endpoint)
        book.running[attempt_id] = endpoint
        self._by_id[attempt_id] = book
        self._policy.started(endpoint, attempt_id, now)

    def first_token(self, endpoint: int, attempt_id: str, now: float) -> None:
        """One attempt of a request has the first token, once, in time."""
        self._pass(now)
        book = self._by_id[attempt_id]
        number = book.request.number
        if book.running.get(attempt_id) != endpoint:
            raise ArenaInvariantError(f"attempt {attempt_id} has a token without being under way")
        if book.answered_by:
            raise ArenaInvariantError(f"request {number} gets a second first token, from {attempt_id}")
        book.answered_by = attempt_id
        self._policy.first_token(endpoint, attempt_id, now)

    def finished(self, attempted: Attempted, now: float) -> None:
        """Every attempt ends once; beside one that has answered, it is called off."""
        self._pass(now)
        attempt_id, book = attempted.attempt_id, self._by_id[attempted.attempt_id]
        endpoint = book.running.pop(attempt_id, None)
        if endpoint != attempted.endpoint:
            raise ArenaInvariantError(f"attempt {attempt_id} ends without being under way")
        if not isfinite(attempted.latency_s):
            raise ArenaInvariantError(f"attempt {attempt_id} took {attempted.latency_s} s")
        if book.answered_by in ("", attempt_id):
            if attempted.outcome is Outcome.CANCELLED:
                raise ArenaInvariantError(f"attempt {attempt_id} is called off, and nobody answers")
            if (attempted.ttft_s is not None) != (book.answered_by == attempt_id):
                raise ArenaInvariantError(
                    f"attempt {attempt_id} ends with a first token that nobody saw, or without the one that came"
                )
        elif attempted.outcome is not Outcome.CANCELLED:
            raise ArenaInvariantError(f"attempt {attempt_id} goes on beside {book.answered_by}")
        book.ended.append(attempted)
        self._policy.finished(attempted, now)

    def tick(self, now: float) -> Sequence[int]:
        """Probes go to endpoints that exist, one each."""
        self._pass(now)
        probes = self._policy.tick(now)
        self._known(probes, "probed")
        if len(set(probes)) < len(probes):
            raise ArenaInvariantError(f"an endpoint is probed twice at {now:g} s: {probes}")
        for endpoint in probes:
            self._probing[endpoint] = self._probing.get(endpoint, 0) + 1
        return probes

    def probed(self, attempted: Attempted, now: float) -> None:
        """A probe ends once, by its timeout at the latest."""
        self._pass(now)
        endpoint = attempted.endpoint
        self._probing[endpoint] = self._probing.get(endpoint, 0) - 1
        if self._probing[endpoint] < 0:
            raise ArenaInvariantError(f"a probe of endpoint {endpoint} ends that was not sent")
        if not attempted.latency_s <= self.probe_timeout_s:
            raise ArenaInvariantError(f"a probe took {attempted.latency_s} s")
        self._policy.probed(attempted, now)

    def warned(self) -> Collection[int]:
        """Warnings are about endpoints that exist."""
        warned = self._policy.warned()
        self._known(warned, "warned of")
        return warned

    def _known(self, endpoints: Collection[int], what: str) -> None:
        strangers = [endpoint for endpoint in endpoints if endpoint not in self._endpoints]
        if strangers:
            raise ArenaInvariantError(f"endpoints {strangers} are {what}, which do not exist")

    def _pass(self, now: float) -> None:
        if not self._now <= now < inf:
            raise ArenaInvariantError(f"time goes from {self._now:g} s to {now:g} s")
        self._now = now
