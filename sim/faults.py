"""What can go wrong with a provider, and what it does at a given time.

The rule of this file: it is pure. Time and randomness are arguments, so the provider server (real sockets, real time)
and a virtual-clock world suffer the same faults from the same script.

A `Fault` says what happens to whom, when. `effect_at` folds every fault that is active into one `Effect`. `draw`
decides the fate of one request under it.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from random import Random

from sim.decode import FieldError
from sim.quota import Quota


class FaultKind(StrEnum):
    """The kinds of trouble; see `Fault` for the parameters each one takes."""

    LATENCY_RAMP = "latency_ramp"  # TTFT grows to a peak; errors may creep with it; may end in an outage
    ERROR_RATE = "error_rate"  # 5xx with a probability that may creep up
    SERVER_ERROR = "server_error"  # every request gets 5xx, at once
    RATE_LIMIT = "rate_limit"  # 429, with a probability or beyond a token quota per window
    HANG = "hang"  # accepts, never answers
    RESET = "reset"  # TCP RST instead of an answer
    REFUSE = "refuse"  # the listener is gone; connections are reset
    TRUNCATE = "truncate"  # a stream without finish_reason and [DONE], or a body shorter than announced
    STALL = "stall"  # an answer stops half-way, the connection stays
    CRAWL = "crawl"  # few tokens per second
    MALFORMED = "malformed"  # 200 with invalid JSON
    REGION_OUTAGE = "region_outage"  # every provider of a region refuses


class Curve(StrEnum):
    """How a ramp climbs: evenly, or doubling five times on its way (slow, then sudden)."""

    LINEAR = "linear"
    EXPONENTIAL = "exponential"


class Failure(StrEnum):
    """The fate of one request. Listed by precedence: the first that strikes hides the later ones."""

    RESET = "reset"
    HANG = "hang"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    MALFORMED = "malformed"
    TRUNCATE = "truncate"
    STALL = "stall"


_DRAWN = {
    FaultKind.HANG: Failure.HANG,
    FaultKind.RESET: Failure.RESET,
    FaultKind.TRUNCATE: Failure.TRUNCATE,
    FaultKind.STALL: Failure.STALL,
    FaultKind.MALFORMED: Failure.MALFORMED,
}
_PARAMETERS: Mapping[FaultKind, frozenset[str]] = {
    FaultKind.LATENCY_RAMP: frozenset({"peak", "ramp_s", "curve", "probability", "status", "outage_s"}),
    FaultKind.ERROR_RATE: frozenset({"probability", "ramp_s", "curve", "status"}),
    FaultKind.SERVER_ERROR: frozenset({"status"}),
    FaultKind.RATE_LIMIT: frozenset({"probability", "quota_tokens", "window_s", "retry_after_s"}),
    FaultKind.CRAWL: frozenset({"tokens_per_s_multiplier"}),
    FaultKind.REFUSE: frozenset(),
    FaultKind.REGION_OUTAGE: frozenset(),
    **{kind: frozenset({"probability"}) for kind in _DRAWN},
}
_REQUIRED: Mapping[FaultKind, str] = {
    FaultKind.LATENCY_RAMP: "peak",
    FaultKind.ERROR_RATE: "probability",
    FaultKind.CRAWL: "tokens_per_s_multiplier",
    FaultKind.REGION_OUTAGE: "region",
}
_FRAME = frozenset({"kind", "at_s", "for_s", "provider", "region"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault on the providers that match both `provider` and `region` (None matches all; one must be given).

    Active in [at_s, at_s + for_s). A parameter that its kind does not take is refused.

    Attributes:
        at_s, for_s: start on the scenario's clock and duration; `for_s` is endless unless given.
        probability: share of requests struck, (0, 1]. In `latency_ramp` the 5xx share reached at the peak (default 0);
            required by `error_rate`; 1 by default elsewhere.
        peak: TTFT multiplier at the top of a `latency_ramp`, > 1.
        ramp_s: time to climb to `peak` or `probability`. By default a `latency_ramp` climbs until its outage begins,
            and an `error_rate` does not climb but starts at its probability.
        curve: the shape of the climb, linear by default.
        outage_s: the last part of a `latency_ramp`, in which every request gets 5xx.
        status: the 5xx status, 503 by default.
        retry_after_s: the Retry-After of a 429; by default 1, or what is left of the quota's window.
        quota_tokens, window_s: `rate_limit` by quota: tokens granted in each window.
        tokens_per_s_multiplier: how much of its speed a `crawl` leaves, (0, 1).

    Raises:
        FieldError: a parameter is missing, out of range, or not one of this kind's.
    """

    kind: FaultKind
    at_s: float = 0.0
    for_s: float = math.inf
    provider: str | None = None
    region: str | None = None
    probability: float | None = None
    peak: float | None = None
    ramp_s: float | None = None
    curve: Curve | None = None
    outage_s: float | None = None
    status: int | None = None
    retry_after_s: float | None = None
    quota_tokens: int | None = None
    window_s: float | None = None
    tokens_per_s_multiplier: float | None = None

    def __post_init__(self) -> None:
        given = {f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None}
        for name in sorted(given - _FRAME - _PARAMETERS[self.kind]):
            taken = ", ".join(sorted(_PARAMETERS[self.kind])) or "none"
            raise FieldError(name, f"is not a parameter of {self.kind} (its parameters: {taken})")
        required = _REQUIRED.get(self.kind)
        if required and required not in given:
            raise FieldError(required, f"is required by {self.kind}")
        if self.kind is FaultKind.REGION_OUTAGE and self.provider is not None:
            raise FieldError("provider", "region_outage takes a whole region; use refuse for one provider")
        if self.provider is None and self.region is None:
            raise FieldError("", "expected a target: provider, region or both")
        self._check_ranges()

    def _check_ranges(self) -> None:
        ranges: tuple[tuple[str, bool, str], ...] = (
            ("at_s", self.at_s >= 0, ">= 0 seconds"),
            ("for_s", self.for_s > 0, "> 0 seconds"),
            ("probability", self.probability is None or 0 < self.probability <= 1, "in (0, 1]"),
            ("peak", self.peak is None or 1 < self.peak < math.inf, "a multiplier > 1"),
            ("ramp_s", self.ramp_s is None or self.ramp_s > 0, "> 0 seconds"),
            ("outage_s", self.outage_s is None or 0 < self.outage_s < self.for_s < math.inf, "> 0 and below for_s"),
            ("status", self.status is None or 500 <= self.status <= 599, "an HTTP status in 500..599"),
            ("retry_after_s", self.retry_after_s is None or self.retry_after_s >= 0, ">= 0 seconds"),
            ("quota_tokens", self.quota_tokens is None or self.quota_tokens > 0, "> 0 tokens"),
            ("window_s", self.window_s is None or self.window_s > 0, "> 0 seconds"),
            (
                "tokens_per_s_multiplier",
                self.tokens_per_s_multiplier is None or 0 < self.tokens_per_s_multiplier < 1,
                "in (0, 1)",
            ),
        )
        for name, holds, expected in ranges:
            if not holds:
                raise FieldError(name, f"expected {expected}, got {getattr(self, name):g}")
        if self.ramp_s is not None and self.ramp_s + (self.outage_s or 0) > self.for_s * (1 + 1e-9):
            raise FieldError("ramp_s", f"expected ramp_s + outage_s within for_s ({self.for_s:g} s)")
        if self.kind is FaultKind.LATENCY_RAMP and self.ramp_s is None and self.for_s == math.inf:
            raise FieldError("ramp_s", "is required by a latency_ramp without for_s")
        if (self.quota_tokens is None) != (self.window_s is None):
            raise FieldError("quota_tokens", "quota_tokens and window_s go together")
        if self.quota_tokens is not None and self.probability is not None:
            raise FieldError("probability", "expected either a probability or a quota, not both")

    @property
    def end_s(self) -> float:
        """When it is over, seconds on the scenario's clock."""
        return self.at_s + self.for_s

    def active_at(self, t_s: float) -> bool:
        """Is it on at `t_s`? It starts at `at_s` and is over at `end_s`."""
        return self.at_s <= t_s < self.end_s

    def targets(self, provider: str, region: str) -> bool:
        """Does it concern this provider of this region?"""
        return self.provider in (None, provider) and self.region in (None, region)

    def shifted(self, offset_s: float) -> "Fault":
        """The same fault, `offset_s` later."""
        return dataclasses.replace(self, at_s=self.at_s + offset_s)

    def scaled(self, factor: float) -> "Fault":
        """The same fault with every duration times `factor`; a quota keeps its rate of tokens."""

        def times(value: float | None) -> float | None:
            return None if value is None else value * factor

        return dataclasses.replace(
            self,
            at_s=self.at_s * factor,
            for_s=self.for_s * factor,
            ramp_s=times(self.ramp_s),
            outage_s=times(self.outage_s),
            retry_after_s=times(self.retry_after_s),
            window_s=times(self.window_s),
            quota_tokens=None if self.quota_tokens is None else max(1, round(self.quota_tokens * factor)),
        )


@dataclass(frozen=True, slots=True)
class Effect:
    """What all active faults together do to a provider at one moment.

    Attributes:
        failures: probability in (0, 1] that a request meets each failure, were it the only one.
        ttft_multiplier: >= 1. tokens_per_s_multiplier: (0, 1].
        status: the 5xx status of a server error. retry_after_s: of a 429, None if its quota decides.
        refuse: nothing listens. quotas: token quotas to be held.
    """

    failures: Mapping[Failure, float] = field(default_factory=dict)
    ttft_multiplier: float = 1.0
    tokens_per_s_multiplier: float = 1.0
    status: int = 500
    retry_after_s: float | None = None
    refuse: bool = False
    quotas: tuple[Quota, ...] = ()


def effect_at(
    faults: Iterable[Fault], provider: str, region: str, t_s: float, baseline_error_rate: float = 0.0
) -> Effect:
    """What `faults` do to `provider` in `region` at `t_s`.

    Overlapping faults are independent causes: probabilities of one failure join as 1 - (1 - p)(1 - q), multipliers
    multiply, the longest Retry-After and the status of the likelier server error win. `baseline_error_rate` is the
    5xx share [0, 1) of the quiet provider.
    """
    quiet = Effect(failures={Failure.SERVER_ERROR: baseline_error_rate} if baseline_error_rate else {})
    active = (fault for fault in faults if fault.active_at(t_s) and fault.targets(provider, region))
    return reduce(_joined, (_alone(fault, t_s) for fault in active), quiet)


def draw(effect: Effect, rng: Random) -> Failure | None:
    """The fate of one request: independent causes in order of precedence, by exactly one random number.

    One number whatever the effect, so that two runs with the same seed stay comparable request by request.
    """
    left = rng.random()
    spared = 1.0
    for failure in Failure:
        struck = spared * effect.failures.get(failure, 0.0)
        if left < struck:
            return failure
        left -= struck
        spared -= struck
    return None


def _alone(fault: Fault, t_s: float) -> Effect:
    match fault.kind:
        case FaultKind.LATENCY_RAMP if fault.outage_s is not None and t_s >= fault.end_s - fault.outage_s:
            return Effect(failures={Failure.SERVER_ERROR: 1.0}, status=fault.status or 503)
        case FaultKind.LATENCY_RAMP:
            climbed = _climbed(fault, t_s, fault.ramp_s or fault.for_s - (fault.outage_s or 0.0))
            creep = climbed * (fault.probability or 0.0)
            return Effect(
                failures={Failure.SERVER_ERROR: creep} if creep else {},
                ttft_multiplier=1 + ((fault.peak or 1.0) - 1) * climbed,
                status=fault.status or 503,
            )
        case FaultKind.ERROR_RATE:
            climbed = _climbed(fault, t_s, fault.ramp_s) if fault.ramp_s else 1.0
            return Effect(
                failures={Failure.SERVER_ERROR: climbed * (fault.probability or 0.0)}, status=fault.status or 503
            )
        case FaultKind.SERVER_ERROR:
            return Effect(failures={Failure.SERVER_ERROR: 1.0}, status=fault.status or 503)
        case FaultKind.RATE_LIMIT if fault.quota_tokens is not None and fault.window_s is not None:
            quota = Quota(fault.quota_tokens, fault.window_s, fault.at_s)
            return Effect(quotas=(quota,), retry_after_s=fault.retry_after_s)
        case FaultKind.RATE_LIMIT:
            retry_after_s = 1.0 if fault.retry_after_s is None else fault.retry_after_s
            return Effect(failures={Failure.RATE_LIMITED: fault.probability or 1.0}, retry_after_s=retry_after_s)
        case FaultKind.CRAWL:
            return Effect(tokens_per_s_multiplier=fault.tokens_per_s_multiplier or 1.0)
        case FaultKind.REFUSE | FaultKind.REGION_OUTAGE:
            return Effect(refuse=True)
        case kind:
            return Effect(failures={_DRAWN[kind]: fault.probability or 1.0})


def _climbed(fault: Fault, t_s: float, ramp_s: float) -> float:
    done = min(1.0, (t_s - fault.at_s) / ramp_s)
    return (2 ** (5 * done) - 1) / 31 if fault.curve is Curve.EXPONENTIAL else done


def _joined(one: Effect, other: Effect) -> Effect:
    failures = dict(one.failures)
    for failure, probability in other.failures.items():
        failures[failure] = 1 - (1 - failures.get(failure, 0.0)) * (1 - probability)
    likelier = max(one, other, key=lambda effect: effect.failures.get(Failure.SERVER_ERROR, 0.0))
    retry_afters = [effect.retry_after_s for effect in (one, other) if effect.retry_after_s is not None]
    return Effect(
        failures=failures,
        ttft_multiplier=one.ttft_multiplier * other.ttft_multiplier,
        tokens_per_s_multiplier=one.tokens_per_s_multiplier * other.tokens_per_s_multiplier,
        status=likelier.status,
        retry_after_s=max(retry_afters, default=None),
        refuse=one.refuse or other.refuse,
        quotas=one.quotas + other.quotas,
    )
