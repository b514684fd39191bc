"""The registry of features: what a forecast looks at, each with its unit, span, monotone direction and meaning.

The rule of this file: a feature is one row of `FEATURES`; training, serving and replay compute it from the same window
by the same expression. Whoever changes what a row computes raises `_REVISION`, so that models and history made with
the older definition are told apart.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import log1p

import numpy as np
import numpy.typing as npt

from routing.counts import Counter
from routing.window import Window
from scoring.reading import SPANS_S, Reading

_REVISION = 1
_MIN_ATTEMPTS = 6
_LIMITED = Counter.RATE_LIMITED
_FAILURES = (
    Counter.SERVER_ERROR,
    Counter.TIMEOUT,
    Counter.CONNECT_ERROR,
    Counter.BROKEN,
    Counter.POOR_ANSWER,
)


@dataclass(frozen=True, slots=True)
class Member:
    """What the features need to know of an endpoint: with whom it shares a failure domain."""

    provider: str
    region: str


@dataclass(frozen=True, slots=True)
class PeerContext:
    """Shares in [0, 1] of the other endpoints of the same provider and region that are in trouble; 0 without others."""

    provider: float = 0.0
    region: float = 0.0


class Group(StrEnum):
    """What a feature speaks of, in an operator's words: forecasts are explained by these."""

    FAILURES = "failures"
    RATE_LIMITS = "rate limits"
    LATENCY = "latency"
    WAITING = "waiting"
    PEERS = "peers"
    TRAFFIC = "traffic and evidence"


Compute = Callable[[Reading, PeerContext], float]


@dataclass(frozen=True, slots=True)
class Feature:
    """One column.

    `window`: the span in seconds it looks at, 0 for the present moment. `direction`: 1 when more of it may never lower
    the risk, 0 when free.
    """

    group: Group
    name: str
    unit: str
    window: int
    direction: int
    meaning: str
    compute: Compute


_Span = Callable[[Reading, int], float]


def _counted(*counters: Counter) -> _Span:
    return lambda reading, span_s: reading.deviance(span_s, *counters)


def _over(figure: _Span, span_s: int) -> Compute:
    return lambda reading, _: figure(reading, span_s)


def _slope(figure: _Span, short_s: int, long_s: int) -> Compute:
    return lambda reading, _: figure(reading, short_s) - figure(reading, long_s)


def _now(figure: Callable[[Reading], float]) -> Compute:
    return lambda reading, _: figure(reading)


# (group, stem of the name, unit, direction, meaning, figure): one feature for each span.
_PER_SPAN: tuple[tuple[Group, str, str, int, str, _Span], ...] = (
    (
        Group.FAILURES, "failures", "sd", 1, "failures against the baseline's rate, signed Poisson deviance",
        _counted(*_FAILURES),
    ),
    (
        Group.RATE_LIMITS, "limited", "sd", 1, "429 answers against the baseline's rate, signed Poisson deviance",
        _counted(_LIMITED),
    ),
    (
        Group.FAILURES, "failure_rate", "share", 1, "failures among judged attempts, drawn towards 0.5 %",
        Reading.failure_rate,
    ),
    (
        Group.LATENCY, "latency_shift", "log ratio", 1, "mean latency against the baseline, both channels",
        Reading.latency_shift,
    ),
    (Group.LATENCY, "latency_z", "sd", 1, "the latency shift in its own standard errors", Reading.latency_z),
    (Group.LATENCY, "slow_share", "share", 1, "latencies above 2.5 times the baseline", Reading.slow_share),
    (
        Group.TRAFFIC, "attempts", "log count", 0, "answered attempts the span rests on",
        lambda r, span_s: log1p(r.answered(span_s)),
    ),
)  # fmt: skip

# (group, name, unit, window, direction, meaning, compute)
_SINGLE: tuple[tuple[Group, str, str, int, int, str, Compute], ...] = (
    (
        Group.FAILURES, "timeouts_60s", "sd", 60, 1, "timeouts against the baseline's rate, signed Poisson deviance",
        _over(_counted(Counter.TIMEOUT), 60),
    ),
    (
        Group.LATENCY, "latency_slope_15_60s", "log ratio", 60, 0, "latency of 15 s against that of 60 s",
        _slope(Reading.latency_shift, 15, 60),
    ),
    (
        Group.LATENCY, "latency_slope_60_300s", "log ratio", 300, 0, "latency of 60 s against that of 300 s",
        _slope(Reading.latency_shift, 60, 300),
    ),
    (
        Group.FAILURES, "failure_slope_15_60s", "share", 60, 0, "failure rate of 15 s minus that of 60 s",
        _slope(Reading.failure_rate, 15, 60),
    ),
    (
        Group.FAILURES, "failure_slope_60_300s", "share", 300, 0, "failure rate of 60 s minus that of 300 s",
        _slope(Reading.failure_rate, 60, 300),
    ),
    (
        Group.RATE_LIMITS, "limited_rate_60s", "share", 60, 1,
        "429 answers among answered attempts, drawn towards 0.5 %", _over(Reading.limited_rate, 60),
    ),
    (
        Group.RATE_LIMITS, "limited_slope_15_60s", "share", 60, 0, "429 rate of 15 s minus that of 60 s",
        _slope(Reading.limited_rate, 15, 60),
    ),
    (
        Group.LATENCY, "spread_ratio_60s", "log ratio", 60, 0, "latency spread against the baseline's",
        _over(Reading.spread_ratio, 60),
    ),
    (
        Group.LATENCY, "token_shift_60s", "log ratio", 60, 1, "seconds per output token against the baseline",
        _over(Reading.token_shift, 60),
    ),
    (
        Group.WAITING, "in_flight_excess", "log ratio", 0, 1,
        "attempts in flight against arrivals times usual time in service", _now(Reading.in_flight_excess),
    ),
    (
        Group.WAITING, "waiting_ratio", "log ratio", 0, 1, "oldest wait for a first byte against the usual latency",
        _now(Reading.waiting_ratio),
    ),
    (
        Group.WAITING, "overdue", "log count", 0, 1, "attempts that have waited three times the usual latency",
        _now(Reading.overdue),
    ),
    (
        Group.FAILURES, "consecutive_failures", "log count", 0, 1, "failures in a row",
        _now(lambda reading: log1p(reading.window.consecutive_failures)),
    ),
    (
        Group.FAILURES, "earlier_failure_rate", "share", 3600, 1,
        "failures and 429 of the last hour without the last 300 s", _now(Reading.earlier_failure_rate),
    ),
    (
        Group.TRAFFIC, "traffic_ratio", "log ratio", 300, 0, "arrival rate of 15 s against that of 300 s",
        _now(Reading.traffic_ratio),
    ),
    (
        Group.TRAFFIC, "baseline_samples", "log count", 1800, 0, "latency values the baseline rests on",
        _now(lambda reading: log1p(reading.baseline.latency_samples)),
    ),
    (
        Group.PEERS, "provider_peers", "share", 60, 1, "other endpoints of the provider that are in trouble",
        lambda _, peers: peers.provider,
    ),
    (
        Group.PEERS, "region_peers", "share", 60, 1, "other endpoints of the region that are in trouble",
        lambda _, peers: peers.region,
    ),
)  # fmt: skip

FEATURES: tuple[Feature, ...] = (
    *(
        Feature(group, f"{stem}_{span_s}s", unit, span_s, direction, meaning, _over(figure, span_s))
        for span_s in SPANS_S
        for group, stem, unit, direction, meaning, figure in _PER_SPAN
    ),
    *(Feature(*row) for row in _SINGLE),
)
NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)
DIRECTIONS: tuple[int, ...] = tuple(feature.direction for feature in FEATURES)


_BASELINE, _ATTEMPTS, _OVERDUE = (NAMES.index(name) for name in ("baseline_samples", "attempts_60s", "overdue"))


def _feature_set() -> str:
    definitions = [f"{f.name}|{f.unit}|{f.window}|{f.direction}|{f.meaning}" for f in FEATURES]
    digest = hashlib.sha256("\n".join([str(_REVISION), *definitions]).encode()).hexdigest()
    return f"f{len(FEATURES)}-{digest[:10]}"


FEATURE_SET: str = _feature_set()


def in_domain(x: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell which rows of `x` (n × len(FEATURES)) rest on evidence enough for a forecast.

    An endpoint without a baseline cannot be compared with itself, and one without recent attempts shows nothing; both
    are left to the reflex policy.
    """
    recent = (x[:, _ATTEMPTS] > log1p(_MIN_ATTEMPTS - 0.5)) | (x[:, _OVERDUE] > 0)
    return np.asarray((x[:, _BASELINE] > 0) & recent)


def vector(window: Window, now: float, peers: PeerContext) -> list[float]:
    """One row: the features of one endpoint at `now`, in the order of `FEATURES`, all finite."""
    return _row(Reading(window, now), peers)


def matrix(members: Sequence[Member], windows: Sequence[Window], now: float) -> npt.NDArray[np.float64]:
    """The features of all endpoints at `now`, n × len(FEATURES), row i for `members[i]` and `windows[i]`."""
    readings = [Reading(window, now) for window in windows]
    contexts = peer_contexts(members, [reading.in_trouble for reading in readings])
    rows = [_row(reading, peers) for reading, peers in zip(readings, contexts, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(FEATURES))


def peer_contexts(members: Sequence[Member], in_trouble: Sequence[bool]) -> list[PeerContext]:
    """What each endpoint has to know of its peers, from who is in trouble."""
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    for member, trouble in zip(members, in_trouble, strict=True):
        for domain in (("provider", member.provider), ("region", member.region)):
            count, bad = totals.get(domain, (0, 0))
            totals[domain] = (count + 1, bad + trouble)

    def share(domain: tuple[str, str], own: bool) -> float:
        count, bad = totals[domain]
        return (bad - own) / (count - 1) if count > 1 else 0.0

    return [
        PeerContext(share(("provider", member.provider), own), share(("region", member.region), own))
        for member, own in zip(members, in_trouble, strict=True)
    ]


def _row(reading: Reading, peers: PeerContext) -> list[float]:
    return [feature.compute(reading, peers) for feature in FEATURES]
