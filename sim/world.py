"""A seeded world of endpoints for training: who calls whom when, what goes wrong, and what each attempt came to.

The rule of this file: the domain is randomised wide (rates, latencies, spreads, traffic that moves, how much history
there is before the first trouble), so that no world resembles another and a model cannot learn one of them. It runs
on a virtual clock; everything follows from the seed.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from sim.incidents import Incident, IncidentKind, Place, incident_at, incident_of, shared_incident

_Rng = np.random.Generator
_Floats = npt.NDArray[np.float64]

START_S = 1_000_000.0
_REGIONS = ("eu-west", "us-east", "ap-south")


class Setting(StrEnum):
    """STEADY worlds run for an hour and more, full of trouble to learn from; COLD ones begin shortly before their first
    incident, as a fresh installation does. SPARSE ones run for hours with trouble as rare as in service, about three
    incidents and three decoys per endpoint-day: shares of time and alarms per day mean something only there. SHIFTED
    ones are STEADY with normal values that no other setting draws, to see what a forecast is worth abroad.
    """

    STEADY = "steady"
    COLD = "cold"
    SPARSE = "sparse"
    SHIFTED = "shifted"


@dataclass(frozen=True, slots=True)
class _Density:
    """How trouble comes: mean seconds of quiet before the first and between two, share of decoys, chance that a whole
    domain is struck once.
    """

    quiet_s: float
    between_s: float
    decoys: float
    shared: float


_DENSE = _Density(quiet_s=1200, between_s=2000, decoys=0.25, shared=0.4)
_RARE = _Density(quiet_s=14_400, between_s=14_400, decoys=0.5, shared=0.1)


_DURATIONS_S = {
    Setting.STEADY: (2400, 4200),
    Setting.COLD: (180, 480),
    Setting.SPARSE: (9000, 18_000),
    Setting.SHIFTED: (2400, 4200),
}
_TTFT_S = {
    Setting.STEADY: (0.03, 3.0),
    Setting.COLD: (0.03, 0.3),
    Setting.SPARSE: (0.03, 3.0),
    Setting.SHIFTED: (3.0, 8.0),
}
# The timeout lies this many standard deviations of the log latency above its median.
_PATIENCE = 3.0


@dataclass(frozen=True, slots=True)
class Regime:
    """What is normal for one endpoint. `sigma`: spread of the log latency; `reply_share`: share of attempts without a
    stream, whose latency is that of the whole reply.
    """

    place: Place
    ttft_s: float
    sigma: float
    reply_share: float
    output_tokens: float
    tokens_per_s: float
    error_rate: float
    limited_rate: float
    timeout_s: float
    drift: float

    @property
    def id(self) -> str:
        """The endpoint's id."""
        return f"{self.place.provider}/{self.place.region}"


@dataclass(frozen=True, slots=True)
class World:
    """The truth of one world. `rates[i]` are the arrivals per second of endpoint i in each second from START_S on."""

    seed: int
    setting: Setting
    duration_s: int
    regimes: tuple[Regime, ...]
    rates: tuple[_Floats, ...]
    incidents: tuple[Incident, ...]


def make_world(seed: int, setting: Setting) -> World:
    """Draw a world."""
    rng = np.random.default_rng([seed, 0])
    cold = setting is Setting.COLD
    duration_s = int(rng.uniform(*_DURATIONS_S[setting]))
    places = _places(rng)
    regimes = tuple(_regime(place, rng, setting) for place in places)
    if cold:
        incidents = _cold_incidents(places, rng)
    else:
        incidents = _incidents(places, duration_s, _RARE if setting is Setting.SPARSE else _DENSE, rng)
    rates = _rates(places, incidents, duration_s, rng, cold=cold)
    return World(seed, setting, duration_s, regimes, rates, incidents)


def _log_uniform(rng: _Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _places(rng: _Rng) -> tuple[Place, ...]:
    every = [Place(f"provider-{p}", region) for p in range(4) for region in _REGIONS]
    chosen = rng.choice(len(every), size=int(rng.integers(4, 7)), replace=False)
    return tuple(every[i] for i in sorted(chosen))


def _regime(place: Place, rng: _Rng, setting: Setting) -> Regime:
    abroad = setting is Setting.SHIFTED
    ttft_s = _log_uniform(rng, *_TTFT_S[setting])
    sigma = _log_uniform(rng, 1.0, 1.4) if abroad else _log_uniform(rng, 0.1, 1.0)
    reply_share = float(rng.choice([0.0, 0.2, 0.5, 0.7]))
    output_tokens, tokens_per_s = _log_uniform(rng, 8, 400), _log_uniform(rng, 30, 900)
    error_rate = rng.uniform(0.01, 0.02) if abroad else 0.0 if rng.random() < 0.3 else _log_uniform(rng, 1e-4, 0.01)
    limited_rate = 0.0 if rng.random() < 0.8 else _log_uniform(rng, 1e-4, 0.005)
    # Whoever sets a timeout sees to it that usual attempts keep within it.
    usual_s = ttft_s * float(np.exp(_PATIENCE * sigma - sigma**2 / 2))
    whole_s = output_tokens / tokens_per_s if reply_share else 0.0
    return Regime(
        place=place,
        ttft_s=ttft_s,
        sigma=sigma,
        reply_share=reply_share,
        output_tokens=output_tokens,
        tokens_per_s=tokens_per_s,
        error_rate=error_rate,
        limited_rate=limited_rate,
        timeout_s=max(rng.uniform(8, 30), usual_s + 1.5 * whole_s),
        drift=rng.uniform(0.15, 0.3) if abroad else 0.0 if rng.random() < 0.3 else rng.uniform(0.02, 0.15),
    )


def _incidents(places: tuple[Place, ...], duration_s: int, density: _Density, rng: _Rng) -> tuple[Incident, ...]:
    found: list[Incident] = []
    quiet_s = rng.uniform(30, 900)
    if rng.random() < density.shared:
        domain = _domain(places, rng)
        if len(domain) > 1:
            found.append(shared_incident(domain, rng.uniform(quiet_s, duration_s - 300), rng))
    for place in places:
        moment_s = quiet_s + rng.exponential(density.quiet_s)
        while moment_s < duration_s - 120:
            if rng.random() < density.decoys:
                incident = incident_of(IncidentKind.DECOY, place, moment_s, rng)
            else:
                incident = incident_at(place, moment_s, rng)
            found.append(incident)
            # An aftershock comes within minutes, most trouble does not.
            again = incident.kind is not IncidentKind.DECOY and rng.random() < 0.25
            moment_s = incident.end_s + (rng.uniform(60, 600) if again else 120 + rng.exponential(density.between_s))
    return tuple(found)


def _cold_incidents(places: tuple[Place, ...], rng: _Rng) -> tuple[Incident, ...]:
    first_s = rng.uniform(15, 70)
    order = rng.permutation(len(places))
    kind = IncidentKind.RAMP if rng.random() < 0.5 else None
    draw = incident_of(kind, places[order[0]], first_s, rng) if kind else incident_at(places[order[0]], first_s, rng)
    second = incident_at(places[order[1]], draw.end_s + rng.uniform(5, 60), rng)
    decoys = [
        incident_of(IncidentKind.DECOY, places[i], rng.uniform(15, 200), rng) for i in order[2:] if rng.random() < 0.2
    ]
    return tuple(decoys) if rng.random() < 0.3 else (draw, second, *decoys)


def _domain(places: tuple[Place, ...], rng: _Rng) -> tuple[Place, ...]:
    struck = places[int(rng.integers(len(places)))]
    if rng.random() < 0.5:
        return tuple(place for place in places if place.region == struck.region)
    return tuple(place for place in places if place.provider == struck.provider)


def _rates(
    places: tuple[Place, ...], incidents: tuple[Incident, ...], duration_s: int, rng: _Rng, *, cold: bool
) -> tuple[_Floats, ...]:
    """Arrivals per second: balanced over the endpoints or all on the first; moved away from trouble in some worlds, as
    a router would, with probes and canary shares left behind.
    """
    n, seconds = len(places), np.arange(duration_s)
    admission = np.ones((n, duration_s))
    if rng.random() < 0.5:
        for incident in incidents:
            if incident.kind is not IncidentKind.DECOY and rng.random() < 0.7:
                for i in (places.index(place) for place in incident.places):
                    admission[i] = np.minimum(admission[i], _diverted(incident, seconds, rng))
    if rng.random() < 0.35:
        demand = _log_uniform(rng, 2, 20) if cold else _log_uniform(rng, 0.3, 20)
        shares, left = np.zeros((n, duration_s)), np.ones(duration_s)
        for i in rng.permutation(n):
            shares[i] = left * admission[i]
            left = left - shares[i]
        per_endpoint = demand * shares
    else:
        own = np.array([_log_uniform(rng, 1, 25) if cold else _log_uniform(rng, 0.15, 20) for _ in range(n)])
        admitted = own[:, None] * admission
        total = np.maximum(admitted.sum(axis=0), 1e-9)
        per_endpoint = admitted * np.minimum(own.sum() / total, 3.0)
    wave = 1 + rng.uniform(0, 0.4) * np.sin(2 * np.pi * (seconds / rng.uniform(300, 3600) + rng.random()))
    probes = np.where(admission < 0.05, rng.uniform(0.2, 0.6), 0.0)
    return tuple(np.maximum(per_endpoint[i] * wave * _bursts(duration_s, rng), probes[i]) for i in range(n))


def _diverted(incident: Incident, seconds: npt.NDArray[np.int64], rng: _Rng) -> _Floats:
    """Share of its traffic a diverted endpoint keeps: little or nothing from the hard moment on, then canary steps."""
    out_s, back_s = incident.hard_s + rng.uniform(2, 15), incident.end_s + rng.uniform(5, 40)
    step_s = rng.uniform(5, 15)
    marks = [out_s, back_s, back_s + step_s, back_s + 2 * step_s, back_s + 3 * step_s]
    shares = np.array([1.0, 0.1 if rng.random() < 0.3 else 0.0, 0.1, 0.3, 0.6, 1.0])
    return shares[np.searchsorted(marks, seconds, side="right")]


def _bursts(duration_s: int, rng: _Rng) -> _Floats:
    """Gamma noise of mean 1 that lasts about ten seconds."""
    shape = _log_uniform(rng, 2, 100)
    blocks = rng.gamma(shape, 1 / shape, duration_s // 10 + 1)
    return np.repeat(blocks, 10)[:duration_s]
