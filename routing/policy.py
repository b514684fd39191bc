"""Thresholds of the reflex, of failback and of attempts, validated once. Defaults are the shipped policy.

Times are seconds, rates and shares are fractions in [0, 1].
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import pairwise
from math import ceil, inf

from routing.errors import PolicyError


def _check(condition: bool, owner: object, name: str, expected: str) -> None:
    if not condition:
        raise PolicyError(name, getattr(owner, name), expected)


def _check_counts(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _check(isinstance(value, int) and value >= 1, owner, name, "an integer of 1 or more")


def _check_positive(owner: object, *names: str) -> None:
    for name in names:
        _check(0 < getattr(owner, name) < inf, owner, name, "a positive number of seconds")


@dataclass(frozen=True, slots=True)
class ReflexPolicy:
    """When observations alone take traffic away, and for how long.

    An endpoint is ejected when the evidence that it fails `failing_rate` of its attempts, rather than its own normal
    rate (`normal_rate` at least), is so strong that chance would produce it once per `false_alarm_every_s` (see
    `detector.py`); at once when it cannot be reached and has served nothing for `silence_s`. It is degraded when its
    latency is `latency_ratio` times its own baseline, or its seconds per output token `pace_ratio` times, and
    `latency_z` standard errors above it over at least `min_latency_samples`. It is degraded, too, when attempts are
    overdue, `overdue_share` of those that came in the same time: `min_hanging` of them that have waited for a first
    byte for `hang_ratio` times its 95th percentile, or `min_latency_samples` streams that have run for `pace_ratio`
    times theirs (never less than `hang_floor_s`). After `lost_ratio` times such a wait an attempt counts as a failure.
    Poor answers eject by the same evidence as failures, each kind against its own normal. An ejection lasts
    `ejection_s`, doubled with each relapse up to `max_ejection_s`; `forgive_s` without one takes a doubling back.
    """

    failing_rate: float = 0.3
    normal_rate: float = 0.02
    false_alarm_every_s: float = 3600.0
    silence_s: float = 2.0
    latency_ratio: float = 2.5
    latency_z: float = 4.0
    min_latency_samples: int = 5
    hang_ratio: float = 4.0
    hang_floor_s: float = 1.0
    min_hanging: int = 2
    overdue_share: float = 0.1
    lost_ratio: float = 2.0
    pace_ratio: float = 3.0
    ejection_s: float = 5.0
    max_ejection_s: float = 60.0
    forgive_s: float = 120.0

    def __post_init__(self) -> None:
        _check_counts(self, "min_latency_samples", "min_hanging")
        _check_positive(
            self, "false_alarm_every_s", "silence_s", "hang_floor_s", "ejection_s", "max_ejection_s", "forgive_s"
        )
        _check(0 < self.normal_rate < 1, self, "normal_rate", "a fraction in (0, 1)")
        expected = f"a fraction of at least twice normal_rate ({self.normal_rate}) and below 1"
        _check(2 * self.normal_rate <= self.failing_rate < 1, self, "failing_rate", expected)
        for name in ("latency_ratio", "hang_ratio", "pace_ratio"):
            _check(1 < getattr(self, name) < inf, self, name, "a ratio above 1")
        _check(1 <= self.lost_ratio < inf, self, "lost_ratio", "a ratio of 1 or more")
        _check(0 < self.overdue_share < 1, self, "overdue_share", "a fraction in (0, 1)")
        _check(0 <= self.latency_z < inf, self, "latency_z", "0 or more standard errors")


class FailbackKind(StrEnum):
    """How traffic returns: CANARY in few steps, GRADUAL in many small ones, BLUE_GREEN all at once after more
    probes.
    """

    CANARY = "canary"
    GRADUAL = "gradual"
    BLUE_GREEN = "blue_green"


@dataclass(frozen=True, slots=True)
class FailbackPolicy:
    """How traffic returns: probes first, then steps that each need evidence and time.

    `probe_successes` probes in a row begin the return (`validation_probes` for BLUE_GREEN). Probes of one endpoint
    are `probe_interval_s` apart, and further apart with each failure up to `max_probe_interval_s`. A CANARY step
    admits its share of the endpoint's traffic (`steps`), a GRADUAL one `ramp_step` more than the last. A step needs
    `step_s` and outcomes that put the failure rate below `max_failure_rate` with `confidence` (exact binomial bound).
    `degraded_share` is what a degraded endpoint keeps, so that evidence keeps coming, and `min_hold_s` its shortest
    stay there, doubled with each relapse up to `max_hold_s`.
    """

    kind: FailbackKind = FailbackKind.CANARY
    probe_interval_s: float = 2.0
    max_probe_interval_s: float = 15.0
    probe_successes: int = 2
    validation_probes: int = 5
    steps: tuple[float, ...] = (0.1, 0.3)
    ramp_step: float = 0.1
    step_s: float = 12.0
    max_failure_rate: float = 0.3
    confidence: float = 0.8
    degraded_share: float = 0.1
    min_hold_s: float = 15.0
    max_hold_s: float = 30.0

    def __post_init__(self) -> None:
        _check_counts(self, "probe_successes", "validation_probes")
        _check_positive(self, "probe_interval_s", "max_probe_interval_s", "step_s", "min_hold_s", "max_hold_s")
        for name in ("degraded_share", "max_failure_rate", "confidence", "ramp_step"):
            _check(0 < getattr(self, name) < 1, self, name, "a fraction in (0, 1)")
        rising = all(low < high for low, high in pairwise(self.steps))
        within = bool(self.steps) and self.steps[0] > 0 and self.steps[-1] < 1
        _check(rising and within, self, "steps", "rising fractions in (0, 1)")

    def shares(self) -> tuple[float, ...]:
        """Return the share of each step of a return, rising; empty when all traffic comes at once."""
        match self.kind:
            case FailbackKind.CANARY:
                return self.steps
            case FailbackKind.GRADUAL:
                return tuple(self.ramp_step * i for i in range(1, ceil(1 / self.ramp_step)))
            case FailbackKind.BLUE_GREEN:
                return ()

    def probes_needed(self) -> int:
        """Return how many probes in a row begin a return."""
        return self.validation_probes if self.kind is FailbackKind.BLUE_GREEN else self.probe_successes


@dataclass(frozen=True, slots=True)
class ForecastPolicy:
    """When a forecast alone takes traffic away.

    Risk at or above `threshold` degrades an endpoint, risk below `threshold × exit_ratio` lets it return; both are
    higher where forecasts have proved false. A `threshold` of None means the one the model's own manifest recommends. A
    forecast older than `max_age_s` is not acted on, and none is for `settle_s` after an endpoint's return began or its
    rate limit ended: what the forecast looks at still holds the trouble that is over, and the reflex guards the return.
    """

    threshold: float | None = None
    exit_ratio: float = 0.5
    max_age_s: float = 5.0
    settle_s: float = 30.0

    def __post_init__(self) -> None:
        _check(
            self.threshold is None or 0 < self.threshold < 1, self, "threshold", "a probability in (0, 1), or nothing"
        )
        _check(0 < self.exit_ratio <= 1, self, "exit_ratio", "a fraction in (0, 1]")
        _check_positive(self, "max_age_s")
        _check(0 <= self.settle_s < inf, self, "settle_s", "0 or more seconds")


@dataclass(frozen=True, slots=True)
class AttemptPolicy:
    """Limits on the attempts of one request.

    All attempts share one deadline of `deadline_s`, which a stream has met once its first event is out. One attempt
    may wait `ttft_timeout_s` for the first byte of a stream or `reply_timeout_s` for a whole reply, and
    `stall_timeout_s` between two bytes. While another endpoint is left, an attempt may not use the last `reserve_s`
    of the deadline: that time is the fallback's.

    A stream crawls when it stays below `crawl_tokens_per_s`, or, where it could go on elsewhere, below `crawl_ratio` of
    what is usual for the endpoint.
    """

    max_attempts: int = 3
    deadline_s: float = 300.0
    connect_timeout_s: float = 2.0
    ttft_timeout_s: float = 20.0
    reply_timeout_s: float = 120.0
    stall_timeout_s: float = 15.0
    reserve_s: float = 30.0
    crawl_tokens_per_s: float = 1.0
    crawl_ratio: float = 0.1

    def __post_init__(self) -> None:
        _check_counts(self, "max_attempts")
        _check(0 <= self.crawl_tokens_per_s < inf, self, "crawl_tokens_per_s", "0 or more tokens per second")
        _check(0 <= self.crawl_ratio < 1, self, "crawl_ratio", "a fraction in [0, 1)")
        _check_positive(self, "deadline_s", "connect_timeout_s", "ttft_timeout_s", "reply_timeout_s", "stall_timeout_s")
        _check(
            0 <= self.reserve_s < self.deadline_s,
            self,
            "reserve_s",
            f"0 or more and below deadline_s ({self.deadline_s})",
        )


@dataclass(frozen=True, slots=True)
class DomainPolicy:
    """When endpoints that fail together are one event of what they share (see `domains.py`).

    Ejections within `span_s` of each other belong together, and those of `min_parts` parts make the domain's outage.
    It ends when `returning_share` of the endpoints that were out have passed their probes, or when the first of them
    has waited `max_wait_s` for the others.
    """

    span_s: float = 30.0
    min_parts: int = 2
    returning_share: float = 0.5
    max_wait_s: float = 30.0

    def __post_init__(self) -> None:
        _check_positive(self, "span_s", "max_wait_s")
        _check(isinstance(self.min_parts, int) and self.min_parts >= 2, self, "min_parts", "an integer of 2 or more")
        _check(0 < self.returning_share <= 1, self, "returning_share", "a fraction in (0, 1]")


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    """What all requests of a model together may spend on trying again (see `budget.py`).

    Within `window_s`, retries may be `retry_share` of the requests plus `retry_floor_per_s`. When more than
    `overloaded_share` of a model's endpoints are overloaded, retries go only to the others. A request that nobody may
    serve for rate limits alone waits for the first to end, if that takes at most `max_wait_s`; at most `max_waiting`
    requests of a model wait at a time.
    """

    retry_share: float = 0.2
    retry_floor_per_s: float = 10.0
    window_s: float = 10.0
    overloaded_share: float = 0.5
    max_wait_s: float = 2.0
    max_waiting: int = 500

    def __post_init__(self) -> None:
        _check(0 <= self.retry_share < inf, self, "retry_share", "a share of requests of 0 or more")
        _check(0 <= self.retry_floor_per_s < inf, self, "retry_floor_per_s", "0 or more retries per second")
        _check_positive(self, "window_s")
        _check(0 < self.overloaded_share < 1, self, "overloaded_share", "a fraction in (0, 1)")
        _check(0 <= self.max_wait_s < inf, self, "max_wait_s", "0 or more seconds")
        is_count = isinstance(self.max_waiting, int) and self.max_waiting >= 0
        _check(is_count, self, "max_waiting", "an integer of 0 or more")


class HedgeScope(StrEnum):
    """Whose requests may be hedged: nobody's, those whose caller asked for it, or all idempotent ones."""

    NEVER = "never"
    ASKED = "asked"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class HedgePolicy:
    """When a second attempt may start beside one that keeps its caller waiting (see `hedging.py`).

    It starts when no first byte has come within `after_ratio` times the endpoint's own `after_quantile` of that time,
    or within its `doubt_quantile` when the endpoint is in doubt, but never before `floor_s`. Over `window_s`, hedges
    may be `max_share` of the model's requests and `max_spend_share` of what they cost.
    """

    scope: HedgeScope = HedgeScope.ASKED
    after_quantile: float = 0.95
    after_ratio: float = 1.2
    doubt_quantile: float = 0.5
    floor_s: float = 0.2
    max_share: float = 0.05
    max_spend_share: float = 0.05
    window_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("after_quantile", "doubt_quantile", "max_share", "max_spend_share"):
            _check(0 < getattr(self, name) < 1, self, name, "a fraction in (0, 1)")
        _check(1 <= self.after_ratio < inf, self, "after_ratio", "a ratio of 1 or more")
        _check_positive(self, "floor_s", "window_s")


@dataclass(frozen=True, slots=True)
class Policy:
    """All thresholds the engine works by."""

    reflex: ReflexPolicy = ReflexPolicy()
    failback: FailbackPolicy = FailbackPolicy()
    forecast: ForecastPolicy = ForecastPolicy()
    attempts: AttemptPolicy = AttemptPolicy()
    domains: DomainPolicy = DomainPolicy()
    budget: BudgetPolicy = BudgetPolicy()
    hedge: HedgePolicy = HedgePolicy()

    def thresholds(self) -> dict[str, object]:
        """Flatten to `group.field: value`, for explanations and records."""
        return {
            f"{group.name}.{leaf.name}": getattr(getattr(self, group.name), leaf.name)
            for group in fields(self)
            for leaf in fields(getattr(self, group.name))
        }
