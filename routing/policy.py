"""Thresholds of the reflex, of failback and of attempts, validated once. Defaults are the shipped policy.

Times are seconds, rates and shares are fractions in [0, 1].
"""

from dataclasses import dataclass, fields

from routing.errors import PolicyError


def _check(condition: bool, owner: object, name: str, expected: str) -> None:
    if not condition:
        raise PolicyError(name, getattr(owner, name), expected)


@dataclass(frozen=True, slots=True)
class ReflexPolicy:
    """When observations alone take traffic away, and for how long.

    An endpoint is ejected at once on a hard failure, on `consecutive_failures` in a row, or when at least
    `min_attempts` of the last 15 s show an error rate of `error_rate`. It is degraded when its latency is
    `latency_ratio` times its own baseline, or when `min_hanging` attempts have waited for a first byte longer than
    `hang_ratio` times its 95th percentile (never less than `hang_floor_s`). An ejection lasts `ejection_s`, doubled
    each time up to `max_ejection_s`; a quiet `forgive_s` takes one doubling back.
    """

    consecutive_failures: int = 3
    error_rate: float = 0.5
    min_attempts: int = 5
    latency_ratio: float = 3.0
    min_latency_samples: int = 5
    hang_ratio: float = 4.0
    hang_floor_s: float = 1.0
    min_hanging: int = 2
    ejection_s: float = 5.0
    max_ejection_s: float = 300.0
    forgive_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("consecutive_failures", "min_attempts", "min_latency_samples", "min_hanging"):
            _check(getattr(self, name) >= 1, self, name, "an integer of 1 or more")
        _check(0 < self.error_rate <= 1, self, "error_rate", "a fraction in (0, 1]")
        for name in ("latency_ratio", "hang_ratio"):
            _check(getattr(self, name) > 1, self, name, "a ratio above 1")
        for name in ("hang_floor_s", "ejection_s", "forgive_s"):
            _check(getattr(self, name) > 0, self, name, "a positive number of seconds")
        _check(
            self.max_ejection_s >= self.ejection_s, self, "max_ejection_s", f"at least ejection_s ({self.ejection_s})"
        )


@dataclass(frozen=True, slots=True)
class FailbackPolicy:
    """How traffic returns: probes first, then canary steps that each need evidence and time.

    `probe_successes` probes in a row open the canary. Each step admits its share of the endpoint's traffic and needs
    `step_successes` successes over at least `step_s` without a breach. `degraded_share` is what a degraded endpoint
    keeps, so that evidence keeps coming, and `min_hold_s` is the shortest stay there. `probe_interval_s` spaces the
    probes of one endpoint.
    """

    probe_interval_s: float = 2.0
    probe_successes: int = 2
    steps: tuple[float, ...] = (0.1, 0.3, 0.6)
    step_successes: int = 5
    step_s: float = 5.0
    degraded_share: float = 0.1
    min_hold_s: float = 15.0

    def __post_init__(self) -> None:
        for name in ("probe_successes", "step_successes"):
            _check(getattr(self, name) >= 1, self, name, "an integer of 1 or more")
        for name in ("probe_interval_s", "step_s", "min_hold_s"):
            _check(getattr(self, name) > 0, self, name, "a positive number of seconds")
        _check(0 < self.degraded_share < 1, self, "degraded_share", "a fraction in (0, 1)")
        rising = all(low < high for low, high in zip(self.steps, self.steps[1:], strict=False))
        _check(
            bool(self.steps) and rising and self.steps[0] > 0 and self.steps[-1] < 1,
            self,
            "steps",
            "rising fractions in (0, 1)",
        )


@dataclass(frozen=True, slots=True)
class ForecastPolicy:
    """When a forecast alone takes traffic away.

    Risk at or above `threshold` degrades an endpoint, risk below `threshold × exit_ratio` lets it return. A
    `threshold` of None means the one the model's own manifest recommends. A forecast older than `max_age_s` is not
    acted on.
    """

    threshold: float | None = None
    exit_ratio: float = 0.5
    max_age_s: float = 5.0

    def __post_init__(self) -> None:
        _check(
            self.threshold is None or 0 < self.threshold < 1, self, "threshold", "a probability in (0, 1), or nothing"
        )
        _check(0 < self.exit_ratio <= 1, self, "exit_ratio", "a fraction in (0, 1]")
        _check(self.max_age_s > 0, self, "max_age_s", "a positive number of seconds")


@dataclass(frozen=True, slots=True)
class AttemptPolicy:
    """Limits on the attempts of one request.

    All attempts share one deadline of `deadline_s`, which a stream has met once its first event is out. One attempt
    may wait `ttft_timeout_s` for the first byte of a stream or `reply_timeout_s` for a whole reply, and
    `stall_timeout_s` between two bytes. While another endpoint is left, an attempt may not use the last `reserve_s`
    of the deadline: that time is the fallback's.
    """

    max_attempts: int = 3
    deadline_s: float = 300.0
    connect_timeout_s: float = 2.0
    ttft_timeout_s: float = 20.0
    reply_timeout_s: float = 120.0
    stall_timeout_s: float = 15.0
    reserve_s: float = 30.0

    def __post_init__(self) -> None:
        _check(self.max_attempts >= 1, self, "max_attempts", "an integer of 1 or more")
        for name in ("deadline_s", "connect_timeout_s", "ttft_timeout_s", "reply_timeout_s", "stall_timeout_s"):
            _check(getattr(self, name) > 0, self, name, "a positive number of seconds")
        _check(
            0 <= self.reserve_s < self.deadline_s,
            self,
            "reserve_s",
            f"0 or more and below deadline_s ({self.deadline_s})",
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """All thresholds the engine works by."""

    reflex: ReflexPolicy = ReflexPolicy()
    failback: FailbackPolicy = FailbackPolicy()
    forecast: ForecastPolicy = ForecastPolicy()
    attempts: AttemptPolicy = AttemptPolicy()

    def thresholds(self) -> dict[str, object]:
        """Flatten to `group.field: value`, for explanations and records."""
        return {
            f"{group.name}.{leaf.name}": getattr(getattr(self, group.name), leaf.name)
            for group in fields(self)
            for leaf in fields(getattr(self, group.name))
        }
