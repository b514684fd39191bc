"""The incidents of an arena scenario, and the faults they are made of.

The rule of this file: an incident is described by a few numbers whose defaults stand in one table; a number its kind
does not use is refused. What it does to an endpoint is a list of `sim.faults.Fault`, the same values that the real
provider server suffers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sim.decode import FieldError
from sim.faults import Curve, Fault, FaultKind
from sim.incidents import Place


class ArenaKind(StrEnum):
    """The kinds of trouble. The value of each is its name in a scenario file."""

    QUEUE = "queue"  # latency grows as 1 / (1 - load): slow for long, then steep; 503 near the top
    RATE_LIMIT = "rate_limit"  # 429, more and more
    ERROR_CREEP = "error_creep"  # 5xx, more and more
    ABRUPT = "abrupt"  # 5xx from one second to the next
    HANG = "hang"  # requests are accepted and never answered
    FLAPPING = "flapping"  # short outages that come and go
    STALL = "stall"  # streams stop half-way
    CRAWL = "crawl"  # streams become so slow that callers run out of time
    REGIONAL = "regional"  # the endpoints of a region refuse connections, one after the other within seconds
    CORRELATED = "correlated"  # the endpoints of a provider (or region) queue up together
    AFTERSHOCKS = "aftershocks"  # an outage, and shorter ones after it
    DECOY = "decoy"  # a bump of latency and a few lone errors that lead nowhere


DEFAULTS: Mapping[ArenaKind, Mapping[str, float]] = {
    ArenaKind.QUEUE: {"climb_s": 180, "hold_s": 60, "peak": 8, "probability": 0.5},
    ArenaKind.RATE_LIMIT: {"climb_s": 120, "hold_s": 60, "probability": 0.8, "retry_after_s": 5},
    ArenaKind.ERROR_CREEP: {"climb_s": 240, "hold_s": 60, "probability": 0.6},
    ArenaKind.ABRUPT: {"hold_s": 60, "probability": 1},
    ArenaKind.HANG: {"hold_s": 60, "probability": 0.8},
    ArenaKind.FLAPPING: {"on_s": 15, "off_s": 25, "times": 5, "probability": 0.8},
    ArenaKind.STALL: {"hold_s": 90, "probability": 0.5},
    ArenaKind.CRAWL: {"hold_s": 120, "speed": 0.03},
    ArenaKind.REGIONAL: {"hold_s": 120, "lag_s": 10},
    ArenaKind.CORRELATED: {"climb_s": 60, "hold_s": 90, "lag_s": 15, "peak": 8, "probability": 0.7},
    ArenaKind.AFTERSHOCKS: {"hold_s": 60, "probability": 1, "times": 3, "gap_s": 150},
    ArenaKind.DECOY: {"climb_s": 20, "hold_s": 40, "peak": 1.6, "probability": 0.03},
}
SHARED = frozenset({ArenaKind.REGIONAL, ArenaKind.CORRELATED})
_QUEUE_STEPS = 12
_LIMIT_STEPS = 10
_STATUS = 503
_Range = tuple[Callable[[float], bool], str]
_DURATION: _Range = (lambda value: value > 0, "> 0 seconds")
_RANGES: Mapping[str, _Range] = {
    "peak": (lambda value: value > 1, "a multiplier > 1"),
    "probability": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "retry_after_s": (lambda value: value >= 0, ">= 0 seconds"),
    "lag_s": (lambda value: value >= 0, ">= 0 seconds"),
    "speed": (lambda value: 0 < value < 1, "in (0, 1)"),
    "times": (lambda value: 1 <= value <= 1000 and value == int(value), "a whole number from 1 to 1000"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of an incident; None takes the default of its kind (`DEFAULTS`).

    Attributes:
        climb_s, hold_s: how long it grows and how long it then lasts.
        peak: TTFT multiplier at the top, > 1. probability: share of requests that fail at the top, (0, 1].
        retry_after_s: what a 429 says. speed: share of the tokens per second a crawl leaves, (0, 1).
        on_s, off_s: length of one outage of a flapping endpoint and of the pause after it.
        times: number of outages of a flapping endpoint, or of aftershocks. gap_s: pause before an aftershock.
        lag_s: within which the endpoints of a shared incident follow the first.
    """

    climb_s: float | None = None
    hold_s: float | None = None
    peak: float | None = None
    probability: float | None = None
    retry_after_s: float | None = None
    speed: float | None = None
    on_s: float | None = None
    off_s: float | None = None
    times: float | None = None
    gap_s: float | None = None
    lag_s: float | None = None

    def complete(self, kind: ArenaKind) -> dict[str, float]:
        """Return every number of `kind`.

        Raises:
            FieldError: a number is out of range, or not one of this kind's.
        """
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(Shape) if getattr(self, f.name) is not None}
        for name, value in given.items():
            if name not in DEFAULTS[kind]:
                raise FieldError(name, f"is not a parameter of {kind} (its parameters: {', '.join(DEFAULTS[kind])})")
            holds, expected = _RANGES.get(name, _DURATION)
            if not holds(value):
                raise FieldError(name, f"expected {expected}, got {value:g}")
        return {**DEFAULTS[kind], **given}


def faults_of(kind: ArenaKind, numbers: Mapping[str, float], place: Place, at_s: float) -> list[Fault]:
    """Return what an incident of `kind` does to the endpoint at `place` from `at_s` on; `numbers` as `complete` gives
    them.
    """
    maker = _Maker(place, at_s)
    hold_s, probability = numbers.get("hold_s", 0.0), numbers.get("probability", 1.0)
    match kind:
        case ArenaKind.QUEUE | ArenaKind.CORRELATED:
            return maker.queue(numbers["climb_s"], hold_s, numbers["peak"], probability)
        case ArenaKind.RATE_LIMIT:
            return maker.rate_limit(numbers["climb_s"], hold_s, probability, numbers["retry_after_s"])
        case ArenaKind.ERROR_CREEP:
            climb_s = numbers["climb_s"]
            return [maker.errors(0.0, climb_s + hold_s, probability, ramp_s=climb_s)]
        case ArenaKind.ABRUPT:
            return [maker.errors(0.0, hold_s, probability)]
        case ArenaKind.HANG:
            return [maker.fault(FaultKind.HANG, 0.0, hold_s, probability=probability)]
        case ArenaKind.FLAPPING:
            period_s = numbers["on_s"] + numbers["off_s"]
            return [maker.errors(i * period_s, numbers["on_s"], probability) for i in range(int(numbers["times"]))]
        case ArenaKind.STALL:
            return [maker.fault(FaultKind.STALL, 0.0, hold_s, probability=probability)]
        case ArenaKind.CRAWL:
            return [maker.fault(FaultKind.CRAWL, 0.0, hold_s, tokens_per_s_multiplier=numbers["speed"])]
        case ArenaKind.REGIONAL:
            return [maker.fault(FaultKind.REFUSE, 0.0, hold_s)]
        case ArenaKind.AFTERSHOCKS:
            return maker.aftershocks(hold_s, probability, int(numbers["times"]), numbers["gap_s"])
        case ArenaKind.DECOY:
            return [
                *maker.bump(numbers["climb_s"], hold_s, numbers["peak"]),
                maker.errors(numbers["climb_s"], hold_s, probability),
            ]


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the faults of one endpoint; times count from `start_s`."""

    place: Place
    start_s: float

    def fault(
        self,
        kind: FaultKind,
        after_s: float,
        for_s: float,
        *,
        probability: float | None = None,
        tokens_per_s_multiplier: float | None = None,
        retry_after_s: float | None = None,
    ) -> Fault:
        return Fault(
            kind=kind, at_s=self.start_s + after_s, for_s=for_s, provider=self.place.provider, region=self.place.region,
            probability=probability, tokens_per_s_multiplier=tokens_per_s_multiplier, retry_after_s=retry_after_s,
        )  # fmt: skip

    def errors(self, after_s: float, for_s: float, probability: float, ramp_s: float | None = None) -> Fault:
        return Fault(
            kind=FaultKind.ERROR_RATE, at_s=self.start_s + after_s, for_s=for_s, provider=self.place.provider,
            region=self.place.region, probability=probability, ramp_s=ramp_s, curve=Curve.LINEAR, status=_STATUS,
        )  # fmt: skip

    def slow(self, after_s: float, for_s: float, multiplier: float, ramp_s: float | None = None) -> Fault:
        return Fault(
            kind=FaultKind.LATENCY_RAMP, at_s=self.start_s + after_s, for_s=for_s, provider=self.place.provider,
            region=self.place.region, peak=multiplier, ramp_s=min(1e-3, for_s) if ramp_s is None else ramp_s,
        )  # fmt: skip

    def queue(self, climb_s: float, hold_s: float, peak: float, probability: float) -> list[Fault]:
        """A queue at load rho waits 1 / (1 - rho): even steps of load up to the peak, then down in three steps."""
        top, step_s = 1 - 1 / peak, climb_s / _QUEUE_STEPS
        climb = [self.slow(i * step_s, step_s, 1 / (1 - top * (i + 1) / _QUEUE_STEPS)) for i in range(_QUEUE_STEPS)]
        rejecting_s = 0.3 * climb_s
        ease_s = max(2.0, 0.1 * hold_s)
        ease = [
            self.slow(climb_s + hold_s + i * ease_s, ease_s, 1 + (peak - 1) * left)
            for i, left in enumerate((0.5, 0.2, 0.1))
        ]
        return [
            *climb,
            self.slow(climb_s, hold_s, peak),
            self.errors(climb_s - rejecting_s, rejecting_s + hold_s, probability, ramp_s=rejecting_s),
            *ease,
        ]

    def rate_limit(self, climb_s: float, hold_s: float, top: float, retry_after_s: float) -> list[Fault]:
        step_s = climb_s / _LIMIT_STEPS
        return [
            self.fault(
                FaultKind.RATE_LIMIT,
                i * step_s,
                step_s + (hold_s if i == _LIMIT_STEPS - 1 else 0.0),
                probability=top * ((i + 1) / _LIMIT_STEPS) ** 1.5,
                retry_after_s=retry_after_s,
            )
            for i in range(_LIMIT_STEPS)
        ]

    def aftershocks(self, hold_s: float, probability: float, times: int, gap_s: float) -> list[Fault]:
        """Each shock is half as long as the one before, but never below five seconds."""
        shocks, after_s = [], 0.0
        for i in range(times + 1):
            length_s = max(5.0, hold_s / 2**i)
            shocks.append(self.errors(after_s, length_s, probability))
            after_s += length_s + gap_s
        return shocks

    def bump(self, climb_s: float, hold_s: float, peak: float) -> list[Fault]:
        return [
            self.slow(0.0, climb_s + hold_s, peak, ramp_s=climb_s),
            self.slow(climb_s + hold_s, 0.5 * climb_s, 1 + (peak - 1) / 2),
        ]
