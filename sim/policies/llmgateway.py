"""LLMGateway's smart routing: the lowest weighted score of price, uptime, throughput and latency wins.

Published defaults (documentation "Routing" and source, 2026-11): each factor is the ratio to the best candidate minus
one, times its weight over the sum of weights: price 0.6, uptime 0.5, throughput 0.05, latency 0.025. Below 95 % uptime
a penalty of (5 × deficit)² is added. Metrics of the last 60 minutes, those of the last five counted 3 ×, of the last
one 10 ×; without metrics uptime is 100 %, latency 1 s, throughput 50 tokens/s. It leaves its choice when its uptime
falls below 85 % or another scores better by more than 0.15; 1 % of requests explore. A failed request is retried
elsewhere.

Where the documentation is silent: minutes are the clock's, the current one being the last; scores are refreshed every
second; two retries, at once, on the best endpoint left; 240 s of patience; a rate limit lowers uptime as the source's
key health does. Balanced by price: the primary is preferred only as far as it is the cheapest.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from routing.outcomes import Outcome
from sim.arena.policy import ArenaEndpoint, ArenaRequest, Attempted
from sim.policies.base import SILENT, Baseline, Settings, may_retry

_MINUTES = 60
_RECENT = 4
_LAST_WEIGHT, _RECENT_WEIGHT = 10.0, 3.0
_DEFAULT_LATENCY_S, _DEFAULT_TOKENS_PER_S = 1.0, 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMGatewaySettings(Settings):
    """See the module's docstring."""

    price_weight: float = 0.6
    uptime_weight: float = 0.5
    throughput_weight: float = 0.05
    latency_weight: float = 0.025
    penalised_below_share: float = 0.95
    left_below_share: float = 0.85
    margin: float = 0.15
    exploration_share: float = 0.01
    retries: int = 2
    attempt_timeout_s: float = 240.0
    stall_timeout_s: float = 240.0


class _Metrics:
    """Total, succeeded, sum and count of TTFT, sum and count of speed; per minute, weighted by age when read."""

    __slots__ = ("_minutes", "_past", "now")

    def __init__(self) -> None:
        self._minutes: deque[list[float]] = deque(maxlen=_MINUTES - 1)
        self._past = [0.0] * 6
        self.now = [0.0] * 6

    def next_minute(self, skipped: int) -> None:
        """Close the current minute; `skipped` more passed without anything."""
        self._minutes.append(self.now)
        self._minutes.extend([0.0] * 6 for _ in range(min(skipped, _MINUTES)))
        self.now = [0.0] * 6
        recent = len(self._minutes) - _RECENT
        self._past = [
            sum(row[i] * (_RECENT_WEIGHT if age >= recent else 1.0) for age, row in enumerate(self._minutes))
            for i in range(6)
        ]

    def weighted(self) -> list[float]:
        """Return the six sums."""
        return [past + _LAST_WEIGHT * now for past, now in zip(self._past, self.now, strict=True)]


class LLMGateway(Baseline):
    """See the module's docstring."""

    name = "llmgateway"

    def __init__(self, endpoints: Sequence[ArenaEndpoint], settings: LLMGatewaySettings) -> None:
        super().__init__(len(endpoints), settings, attempts=1 + settings.retries)
        self._settings = settings
        self._price = [endpoint.usd_per_mtok for endpoint in endpoints]
        self._metrics = [_Metrics() for _ in endpoints]
        self._minute = 0
        self._scores, self._uptimes = self._score()
        self._current = self._best()

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002  # the protocol's signature
        """Explore with the last hundredth of the draw, else keep to the current choice; a retry takes the best left."""
        if not tried:
            explored = self._settings.exploration_share
            if draw >= 1.0 - explored:
                return min(int((draw - 1.0 + explored) / explored * self._count), self._count - 1)
            return self._current
        left = [e for e in self._order if e not in tried]
        return min(left, key=self._scores.__getitem__) if left else None

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002  # the protocol's signature
        """Go on at once while retries last."""
        return 0.0 if may_retry(made, self._settings.retries) else None

    def finished(self, attempted: Attempted, now: float) -> None:
        """Add to the current minute."""
        if attempted.outcome in SILENT:
            return
        self._turn(now)
        sums = self._metrics[attempted.endpoint].now
        sums[0] += 1
        if attempted.outcome is not Outcome.OK:
            return
        sums[1] += 1
        if attempted.ttft_s is not None:
            sums[2] += attempted.ttft_s
            sums[3] += 1
        if attempted.tokens_per_s is not None:
            sums[4] += attempted.tokens_per_s
            sums[5] += 1

    def tick(self, now: float) -> Sequence[int]:
        """Refresh the scores and leave the current choice when a rule says so."""
        self._turn(now)
        self._scores, self._uptimes = self._score()
        best, current, settings = self._best(), self._current, self._settings
        if best != current and (
            self._uptimes[current] < settings.left_below_share
            or self._scores[current] - self._scores[best] > settings.margin
        ):
            self._current = best
        return ()

    def _turn(self, now: float) -> None:
        minute = int(now // 60)
        if minute > self._minute:
            for metrics in self._metrics:
                metrics.next_minute(minute - self._minute - 1)
            self._minute = minute

    def _best(self) -> int:
        return min(self._order, key=self._scores.__getitem__)

    def _score(self) -> tuple[list[float], list[float]]:
        """Return (score, lower is better; uptime in [0, 1]) of each endpoint."""
        sums = [metrics.weighted() for metrics in self._metrics]
        uptimes = [s[1] / s[0] if s[0] else 1.0 for s in sums]
        latencies_s = [s[2] / s[3] if s[3] else _DEFAULT_LATENCY_S for s in sums]
        speeds = [s[4] / s[5] if s[5] else _DEFAULT_TOKENS_PER_S for s in sums]
        settings = self._settings
        parts = (
            (settings.price_weight, _above(self._price, min(self._price))),
            (settings.uptime_weight, _below(uptimes, max(uptimes))),
            (settings.throughput_weight, _below(speeds, max(speeds))),
            (settings.latency_weight, _above(latencies_s, min(latencies_s))),
        )
        whole = sum(weight for weight, _ in parts) or 1.0
        scores = [sum(weight / whole * values[e] for weight, values in parts) for e in self._order]
        floor = settings.penalised_below_share
        for endpoint, uptime in enumerate(uptimes):
            if uptime < floor:
                scores[endpoint] += (5.0 * (floor - uptime) / floor) ** 2
        return scores, uptimes


def _above(values: Sequence[float], best: float) -> list[float]:
    """Return by which share each value exceeds the least; 0 when that is 0, as the product does."""
    return [value / best - 1.0 if best > 0 else 0.0 for value in values]


def _below(values: Sequence[float], best: float) -> list[float]:
    """Return by which share the greatest exceeds each value; 1 for a value of 0, as the product does."""
    return [best / value - 1.0 if value > 0 else 1.0 for value in values]
