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

from routing.window import Window
from scoring.reading import SPANS_S, Reading

_Floats = npt.NDArray[np.float64]

_REVISION = 4
_MIN_ATTEMPTS = 6


@dataclass(frozen=True, slots=True)
class Member:
    """What the features need to know of an endpoint: with whom it shares a failure domain."""

    provider: str
    region: str


@dataclass(frozen=True, slots=True)
class PeerContext:
    """Per endpoint: the shares in [0, 1] of the others of its provider and its region that are in trouble; 0 without
    others.
    """

    provider: _Floats
    region: _Floats


class Group(StrEnum):
    """What a feature speaks of, in an operator's words: forecasts are explained by these."""

    FAILURES = "failures"
    RATE_LIMITS = "rate limits"
    LATENCY = "latency"
    WAITING = "waiting"
    PEERS = "peers"
    TRAFFIC = "traffic and evidence"


# One value for each endpoint that is read.
Compute = Callable[[Reading, PeerContext], _Floats]


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


_Figure = Callable[[Reading], _Floats]


def _over(figure: _Figure, span_s: int) -> Compute:
    span = SPANS_S.index(span_s)
    return lambda reading, _: np.asarray(figure(reading)[span])


def _slope(figure: _Figure, short_s: int, long_s: int) -> Compute:
    short, long = SPANS_S.index(short_s), SPANS_S.index(long_s)
    return lambda reading, _: np.asarray(figure(reading)[short] - figure(reading)[long])


def _now(figure: _Figure) -> Compute:
    return lambda reading, _: figure(reading)


# (group, stem of the name, unit, direction, meaning, figure): one feature for each span.
_PER_SPAN: tuple[tuple[Group, str, str, int, str, _Figure], ...] = (
    (
        Group.FAILURES, "failures", "sd", 1, "failures against the baseline's rate, signed Poisson deviance",
        lambda r: r.failure_deviance,
    ),
    (
        Group.RATE_LIMITS, "limited", "sd", 1, "429 answers against the baseline's rate, signed Poisson deviance",
        lambda r: r.limited_deviance,
    ),
    (
        Group.FAILURES, "failure_rate", "share", 1, "failures among judged attempts, drawn towards 0.5 %",
        lambda r: r.failure_rate,
    ),
    (
        Group.LATENCY, "latency_shift", "log ratio", 1, "mean latency against the baseline, both channels",
        lambda r: r.latency_shift,
    ),
    (Group.LATENCY, "latency_z", "sd", 1, "the latency shift in its own standard errors", lambda r: r.latency_z),
    (
        Group.LATENCY, "slow_share", "share", 1, "latencies above 2.5 times the baseline, less the usual share",
        lambda r: r.slow_share,
    ),
    (
        Group.TRAFFIC, "attempts", "log count", 0, "answered attempts the span rests on",
        lambda r: np.log1p(r.span.answered),
    ),
)  # fmt: skip

# (group, name, unit, window, direction, meaning, compute)
_SINGLE: tuple[tuple[Group, str, str, int, int, str, Compute], ...] = (
    (
        Group.FAILURES, "timeouts_60s", "sd", 60, 1, "timeouts against the baseline's rate, signed Poisson deviance",
        _over(lambda r: r.timeout_deviance, 60),
    ),
    (
        Group.FAILURES, "failure_excess", "sd", 90, 1,
        "failures and 429 of the last 30 s or 7 attempts beyond the usual ones, as the rule for degraded counts them",
        _now(lambda r: r.failure_excess),
    ),
    (
        Group.FAILURES, "bad_share", "share", 90, 1,
        "failures and 429 among the answered attempts of the last 30 s or 7 attempts, drawn towards 0",
        _now(lambda r: r.bad_share),
    ),
    (
        Group.LATENCY, "slow_distance", "log ratio", 90, 1,
        "latency of the last 30 s or 7 values against the one from which on an endpoint is called degraded",
        _now(lambda r: r.slow_distance),
    ),
    (
        Group.LATENCY, "latency_slope_15_60s", "log ratio", 60, 0, "latency of 15 s against that of 60 s",
        _slope(lambda r: r.latency_shift, 15, 60),
    ),
    (
        Group.LATENCY, "latency_slope_60_300s", "log ratio", 300, 0, "latency of 60 s against that of 300 s",
        _slope(lambda r: r.latency_shift, 60, 300),
    ),
    (
        Group.FAILURES, "failure_slope_15_60s", "share", 60, 0, "failure rate of 15 s minus that of 60 s",
        _slope(lambda r: r.failure_rate, 15, 60),
    ),
    (
        Group.FAILURES, "failure_slope_60_300s", "share", 300, 0, "failure rate of 60 s minus that of 300 s",
        _slope(lambda r: r.failure_rate, 60, 300),
    ),
    (
        Group.RATE_LIMITS, "limited_rate_60s", "share", 60, 1,
        "429 answers among answered attempts, drawn towards 0.5 %", _over(lambda r: r.limited_rate, 60),
    ),
    (
        Group.RATE_LIMITS, "limited_slope_15_60s", "share", 60, 0, "429 rate of 15 s minus that of 60 s",
        _slope(lambda r: r.limited_rate, 15, 60),
    ),
    (
        Group.LATENCY, "spread_ratio_60s", "log ratio", 60, 0, "latency spread against the baseline's",
        _over(lambda r: r.spread_ratio, 60),
    ),
    (
        Group.LATENCY, "token_shift_60s", "log ratio", 60, 1, "seconds per output token against the baseline",
        _over(lambda r: r.token_shift, 60),
    ),
    (
        Group.WAITING, "in_flight_excess", "log ratio", 0, 1,
        "attempts in flight against arrivals times usual time in service", _now(lambda r: r.in_flight_excess),
    ),
    (
        Group.WAITING, "waiting_ratio", "log ratio", 0, 1, "oldest wait for a first byte against the usual longest",
        _now(lambda r: r.waiting_ratio),
    ),
    (
        Group.WAITING, "overdue", "sd", 0, 1,
        "attempts that have waited three times the usual latency against how many usually do, signed Poisson deviance",
        _now(lambda r: r.overdue),
    ),
    (
        Group.FAILURES, "consecutive_failures", "log count", 0, 1, "failures in a row",
        _now(lambda r: r.consecutive_failures),
    ),
    (
        Group.FAILURES, "earlier_failure_rate", "share", 3600, 1,
        "failures and 429 of the last hour without the last 300 s", _now(lambda r: r.earlier_failure_rate),
    ),
    (
        Group.TRAFFIC, "traffic_ratio", "log ratio", 300, 0, "arrival rate of 15 s against that of 300 s",
        _now(lambda r: r.traffic_ratio),
    ),
    (
        Group.TRAFFIC, "baseline_samples", "log count", 1800, 0, "latency values the baseline rests on",
        _now(lambda r: np.log1p(r.usual.latencies)),
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


def in_domain(x: _Floats) -> npt.NDArray[np.bool_]:
    """Tell which rows of `x` (n × len(FEATURES)) rest on evidence enough for a forecast.

    An endpoint without a baseline cannot be compared with itself, and one without recent attempts shows nothing; both
    are left to the reflex policy.
    """
    recent = (x[:, _ATTEMPTS] > log1p(_MIN_ATTEMPTS - 0.5)) | (x[:, _OVERDUE] > 0)
    return np.asarray((x[:, _BASELINE] > 0) & recent)


def matrix(members: Sequence[Member], windows: Sequence[Window], now: float) -> _Floats:
    """The features of all endpoints at `now`, n × len(FEATURES), all finite: row i for `members[i]` and `windows[i]`.

    Raises ValueError when there are not as many members as windows.
    """
    if len(members) != len(windows):
        raise ValueError(f"{len(members)} members and {len(windows)} windows: expected as many")
    reading = Reading(windows, now)
    peers = peer_context(members, reading.in_trouble)
    x = np.empty((len(windows), len(FEATURES)))
    for column, feature in enumerate(FEATURES):
        x[:, column] = feature.compute(reading, peers)
    return x


def peer_context(members: Sequence[Member], in_trouble: npt.NDArray[np.bool_]) -> PeerContext:
    """What each endpoint has to know of its peers, from who is in trouble."""
    return PeerContext(
        _share_of_others([member.provider for member in members], in_trouble),
        _share_of_others([member.region for member in members], in_trouble),
    )


def _share_of_others(domains: Sequence[str], in_trouble: npt.NDArray[np.bool_]) -> _Floats:
    numbers: dict[str, int] = {}
    domain = np.array([numbers.setdefault(name, len(numbers)) for name in domains], dtype=np.int64)
    others = np.bincount(domain)[domain] - 1
    bad = np.bincount(domain, weights=in_trouble)[domain] - in_trouble
    return np.asarray(bad / np.maximum(others, 1))
