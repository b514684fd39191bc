"""Trouble for a simulated world: which endpoints it strikes, when, as which faults.

The rule of this file: an incident is a list of `sim.faults.Fault`, the same values the provider server suffers, drawn
from a seeded generator over wide ranges so that a model learns what trouble has in common and not one script.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from sim.faults import Curve, Fault, FaultKind

_STATUSES = (500, 502, 503, 529)


class IncidentKind(StrEnum):
    """What kind of trouble. A DECOY looks like the beginning of trouble and leads nowhere."""

    RAMP = "ramp"
    QUEUE = "queue"
    CREEP = "creep"
    RATE_LIMIT = "rate_limit"
    ABRUPT = "abrupt"
    HANG = "hang"
    FLAPPING = "flapping"
    REGION = "region"
    DECOY = "decoy"


@dataclass(frozen=True, slots=True)
class Place:
    """An endpoint as faults see it; its provider and region name it."""

    provider: str
    region: str


@dataclass(frozen=True, slots=True)
class Incident:
    """Trouble of the endpoints of `places` in [start_s, end_s) on the world's clock; `hard_s` is when it gets so bad
    that any breaker would notice.
    """

    kind: IncidentKind
    places: tuple[Place, ...]
    start_s: float
    hard_s: float
    end_s: float
    faults: tuple[Fault, ...]


_Rng = np.random.Generator


def _log_uniform(rng: _Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _curve(rng: _Rng) -> Curve:
    return Curve.EXPONENTIAL if rng.random() < 0.4 else Curve.LINEAR


def _status(rng: _Rng) -> int:
    return _STATUSES[int(rng.integers(len(_STATUSES)))]


def _plateau(place: Place, at_s: float, for_s: float, multiplier: float) -> Fault:
    """Return a latency that is `multiplier` times the usual for a while."""
    return Fault(
        kind=FaultKind.LATENCY_RAMP, provider=place.provider, region=place.region, at_s=at_s, for_s=for_s,
        peak=multiplier, ramp_s=min(1e-3, for_s),
    )  # fmt: skip


def _recovery(place: Place, at_s: float, peak: float, rng: _Rng) -> list[Fault]:
    """Latency comes down in three steps."""
    step_s = _log_uniform(rng, 2, 20)
    return [
        _plateau(place, at_s + step * step_s, step_s, 1 + (peak - 1) * left)
        for step, left in enumerate((0.6, 0.3, 0.1))
    ]


def _ramp(place: Place, at_s: float, rng: _Rng) -> Incident:
    climb_s = _log_uniform(rng, 10, 600)
    peak = rng.uniform(3, 12)
    outage_s = _log_uniform(rng, 10, 180) if rng.random() < 0.65 else None
    creep = rng.uniform(0.05, 0.4) if rng.random() < 0.5 else None
    end_s = at_s + climb_s + (outage_s or 0.0)
    ramp = Fault(
        kind=FaultKind.LATENCY_RAMP, provider=place.provider, region=place.region, at_s=at_s, for_s=end_s - at_s,
        peak=peak, curve=_curve(rng), probability=creep, outage_s=outage_s, status=_status(rng),
    )  # fmt: skip
    after = [] if outage_s else _recovery(place, end_s, peak, rng)
    over_s = after[-1].end_s if after else end_s
    return Incident(IncidentKind.RAMP, (place,), at_s, at_s + 0.9 * climb_s, over_s, (ramp, *after))


def _queue(place: Place, at_s: float, rng: _Rng) -> Incident:
    """A queue grows as 1 / (1 - load): slow for long, then steep; timeouts and 503 come with it near the top."""
    climb_s, peak, steps = _log_uniform(rng, 20, 600), rng.uniform(4, 20), 12
    top_load = 1 - 1 / peak
    faults = [
        _plateau(place, at_s + climb_s * i / steps, climb_s / steps, 1 / (1 - top_load * (i + 1) / steps))
        for i in range(steps)
    ]
    held_s = _log_uniform(rng, 5, 120)
    faults.append(_plateau(place, at_s + climb_s, held_s, peak))
    if rng.random() < 0.7:
        faults.append(
            Fault(
                kind=FaultKind.ERROR_RATE,
                provider=place.provider,
                region=place.region,
                at_s=at_s + 0.7 * climb_s,
                for_s=0.3 * climb_s + held_s,
                probability=rng.uniform(0.2, 0.9),
                ramp_s=0.3 * climb_s,
                status=_status(rng),
            )
        )  # fmt: skip
    after = _recovery(place, at_s + climb_s + held_s, peak, rng)
    return Incident(
        IncidentKind.QUEUE, (place,), at_s, at_s + 0.95 * climb_s, after[-1].end_s, (*faults, *after)
    )  # fmt: skip


def _creep(place: Place, at_s: float, rng: _Rng) -> Incident:
    climb_s, held_s = _log_uniform(rng, 20, 600), _log_uniform(rng, 10, 180)
    fault = Fault(
        kind=FaultKind.ERROR_RATE, provider=place.provider, region=place.region, at_s=at_s, for_s=climb_s + held_s,
        probability=rng.uniform(0.2, 1.0), ramp_s=climb_s, curve=_curve(rng), status=_status(rng),
    )  # fmt: skip
    return Incident(IncidentKind.CREEP, (place,), at_s, at_s + 0.8 * climb_s, fault.end_s, (fault,))


def _rate_limit(place: Place, at_s: float, rng: _Rng) -> Incident:
    climb_s, held_s, steps = _log_uniform(rng, 20, 300), _log_uniform(rng, 10, 180), 10
    top = rng.uniform(0.3, 1.0)
    faults = [
        Fault(
            kind=FaultKind.RATE_LIMIT,
            provider=place.provider,
            region=place.region,
            at_s=at_s + climb_s * i / steps,
            for_s=climb_s / steps + (held_s if i == steps - 1 else 0.0),
            probability=top * ((i + 1) / steps) ** 1.5,
        )
        for i in range(steps)
    ]  # fmt: skip
    return Incident(
        IncidentKind.RATE_LIMIT, (place,), at_s, at_s + 0.8 * climb_s, at_s + climb_s + held_s, tuple(faults)
    )  # fmt: skip


def _abrupt(place: Place, at_s: float, rng: _Rng) -> Incident:
    for_s = _log_uniform(rng, 10, 300)
    kind = FaultKind.REFUSE if rng.random() < 0.3 else FaultKind.ERROR_RATE
    fault = Fault(
        kind=kind, provider=place.provider, region=place.region, at_s=at_s, for_s=for_s,
        probability=None if kind is FaultKind.REFUSE else rng.uniform(0.4, 1.0),
        status=None if kind is FaultKind.REFUSE else _status(rng),
    )  # fmt: skip
    return Incident(IncidentKind.ABRUPT, (place,), at_s, at_s + 3.0, at_s + for_s, (fault,))


def _hang(place: Place, at_s: float, rng: _Rng) -> Incident:
    kinds = (FaultKind.HANG, FaultKind.STALL, FaultKind.TRUNCATE, FaultKind.MALFORMED)
    fault = Fault(
        kind=kinds[int(rng.choice(4, p=(0.7, 0.1, 0.1, 0.1)))], provider=place.provider, region=place.region,
        at_s=at_s, for_s=_log_uniform(rng, 15, 240), probability=rng.uniform(0.3, 1.0),
    )  # fmt: skip
    return Incident(IncidentKind.HANG, (place,), at_s, at_s + 15.0, fault.end_s, (fault,))


def _flapping(place: Place, at_s: float, rng: _Rng) -> Incident:
    """Short outages that come and go: each is the aftershock of the one before."""
    faults, moment_s = [], at_s
    for _ in range(int(rng.integers(3, 8))):
        on_s = _log_uniform(rng, 3, 40)
        faults.append(
            Fault(
                kind=FaultKind.ERROR_RATE,
                provider=place.provider,
                region=place.region,
                at_s=moment_s,
                for_s=on_s,
                probability=rng.uniform(0.3, 1.0),
                status=_status(rng),
            )
        )  # fmt: skip
        moment_s += on_s + _log_uniform(rng, 5, 60)
    return Incident(IncidentKind.FLAPPING, (place,), at_s, at_s + 3.0, faults[-1].end_s, tuple(faults))


def _decoy(place: Place, at_s: float, rng: _Rng) -> Incident:
    """A bump of latency, a few lone errors, or a few 429 answers."""
    what, for_s = rng.random(), _log_uniform(rng, 5, 120)
    if what < 0.5:
        peak = rng.uniform(1.15, 1.7)
        up = Fault(
            kind=FaultKind.LATENCY_RAMP, provider=place.provider, region=place.region, at_s=at_s, for_s=for_s,
            peak=peak, ramp_s=for_s * rng.uniform(0.1, 0.9),
        )  # fmt: skip
        faults = [up, *_recovery(place, at_s + for_s, peak, rng)]
    else:
        kind = FaultKind.ERROR_RATE if what < 0.85 else FaultKind.RATE_LIMIT
        faults = [
            Fault(
                kind=kind,
                provider=place.provider,
                region=place.region,
                at_s=at_s,
                for_s=min(for_s, 30.0),
                probability=rng.uniform(0.005, 0.04),
            )
        ]  # fmt: skip
    return Incident(IncidentKind.DECOY, (place,), at_s, at_s, faults[-1].end_s, tuple(faults))


_MAKERS: dict[IncidentKind, tuple[float, Callable[[Place, float, _Rng], Incident]]] = {
    IncidentKind.RAMP: (0.26, _ramp),
    IncidentKind.QUEUE: (0.16, _queue),
    IncidentKind.CREEP: (0.2, _creep),
    IncidentKind.RATE_LIMIT: (0.14, _rate_limit),
    IncidentKind.ABRUPT: (0.12, _abrupt),
    IncidentKind.HANG: (0.07, _hang),
    IncidentKind.FLAPPING: (0.05, _flapping),
}


def incident_at(place: Place, at_s: float, rng: _Rng) -> Incident:
    """Draw an incident of one endpoint, of any kind."""
    kinds = list(_MAKERS)
    weights = np.array([_MAKERS[kind][0] for kind in kinds])
    return _MAKERS[kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]][1](place, at_s, rng)


def incident_of(kind: IncidentKind, place: Place, at_s: float, rng: _Rng) -> Incident:
    """Draw an incident of one endpoint and of one kind."""
    return _decoy(place, at_s, rng) if kind is IncidentKind.DECOY else _MAKERS[kind][1](place, at_s, rng)


def shared_incident(places: tuple[Place, ...], at_s: float, rng: _Rng) -> Incident:
    """Draw trouble that strikes several endpoints of one failure domain, each up to 30 s after the first."""
    parts = [
        incident_of(IncidentKind.RAMP if rng.random() < 0.5 else IncidentKind.ABRUPT, place, at_s + lag_s, rng)
        for place, lag_s in zip(places, [0.0, *rng.uniform(0, 30, len(places) - 1)], strict=True)
    ]
    return Incident(
        IncidentKind.REGION,
        places,
        at_s,
        max(part.hard_s for part in parts),
        max(part.end_s for part in parts),
        tuple(fault for part in parts for fault in part.faults),
    )
