"""Tuned breaker: the best an error-rate and latency breaker can do, once its numbers are fitted (see `GRIDS`).

Ordered. An active endpoint is ejected when at least `min_requests` of the last `window_s` show an error share of
`error_share`, or when their mean time to first token (geometric) is `latency_ratio` times the endpoint's own average
of about half an hour, so that a slow ramp does not become the norm. After `ejection_s` it is probing: one live request
at a time until `successes` in a row bring it back; a failure or a slow success ejects it again. A rate limit is an
error like any other. Defaults before tuning follow resilience4j (50 % of the calls) with the shorter windows that
routers use. Two retries, at once, on endpoints not tried; 20 s of patience. With all endpoints out the order alone
decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1, log

from routing.outcomes import Outcome
from sim.arena.policy import ArenaRequest, Attempted
from sim.policies.base import SILENT, Baseline, Settings, may_retry
from sim.policies.windows import SlidingCount

_BASELINE_SAMPLES = 20
_BASELINE_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedBreakerSettings(Settings):
    """See the module's docstring."""

    window_s: float = 30.0
    min_requests: int = 5
    error_share: float = 0.5
    latency_ratio: float = 3.0
    ejection_s: float = 30.0
    successes: int = 3
    retries: int = 2
    attempt_timeout_s: float = 20.0
    stall_timeout_s: float = 20.0


class _Breaker:
    """One endpoint: active while `until` is None, ejected before `until`, probing after."""

    __slots__ = ("baseline", "baseline_at", "baseline_n", "passed", "recent", "trial", "until")

    def __init__(self, window_s: float) -> None:
        self.recent = SlidingCount(window_s)
        self.until: float | None = None
        self.trial = ""
        self.passed = 0
        self.baseline = 0.0
        self.baseline_n = 0
        self.baseline_at = 0.0


class TunedBreaker(Baseline):
    """See the module's docstring."""

    name = "tuned-breaker"

    def __init__(self, endpoints: int, settings: TunedBreakerSettings) -> None:
        super().__init__(endpoints, settings, attempts=1 + settings.retries)
        self._settings = settings
        self._log_ratio = log(max(settings.latency_ratio, 1e-9))
        self._breakers = [_Breaker(settings.window_s) for _ in range(endpoints)]

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002  # the protocol's signature
        """Return the first endpoint not tried that is active, or probing without a trial under way."""
        left = None
        for endpoint in self._order:
            if endpoint not in tried:
                breaker = self._breakers[endpoint]
                if breaker.until is None or (now >= breaker.until and not breaker.trial):
                    return endpoint
                if left is None:
                    left = endpoint
        return left

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002  # the protocol's signature
        """Go on at once while retries last."""
        return 0.0 if may_retry(made, self._settings.retries) else None

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        """The first request to a probing endpoint is its trial."""
        breaker = self._breakers[endpoint]
        if breaker.until is not None and now >= breaker.until and not breaker.trial:
            breaker.trial = attempt_id

    def finished(self, attempted: Attempted, now: float) -> None:
        """Judge a trial, or count towards the shares of an active endpoint."""
        breaker = self._breakers[attempted.endpoint]
        trial = breaker.trial == attempted.attempt_id
        if trial:
            breaker.trial = ""
        if attempted.outcome in SILENT:
            return
        ok = attempted.outcome is Outcome.OK
        if breaker.until is None:
            self._count_in(breaker, attempted, now, ok=ok)
        elif trial:
            if not ok or self._is_slow(breaker, attempted.ttft_s):
                self._eject(breaker, now)
                return
            breaker.passed += 1
            if breaker.passed >= self._settings.successes:
                breaker.until = None

    def _count_in(self, breaker: _Breaker, attempted: Attempted, now: float, *, ok: bool) -> None:
        settings, recent = self._settings, breaker.recent
        recent.add(now, failed=not ok, latency_s=attempted.ttft_s)
        if ok and attempted.ttft_s is not None:
            breaker.baseline_n += 1
            step = max(1.0 / breaker.baseline_n, -expm1((breaker.baseline_at - now) / _BASELINE_S))
            breaker.baseline_at = now
            breaker.baseline += step * (log(max(attempted.ttft_s, 1e-4)) - breaker.baseline)
        least = max(1, settings.min_requests)
        if (not ok and recent.total >= least and recent.failed / recent.total >= settings.error_share) or (
            recent.successes >= least
            and breaker.baseline_n >= _BASELINE_SAMPLES
            and recent.mean_log - breaker.baseline >= self._log_ratio
        ):
            self._eject(breaker, now)

    def _is_slow(self, breaker: _Breaker, ttft_s: float | None) -> bool:
        if ttft_s is None or breaker.baseline_n < _BASELINE_SAMPLES:
            return False
        return log(max(ttft_s, 1e-4)) - breaker.baseline >= self._log_ratio

    def _eject(self, breaker: _Breaker, now: float) -> None:
        breaker.until = now + self._settings.ejection_s
        breaker.passed = 0
        breaker.recent.clear()
