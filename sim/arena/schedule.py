"""Which incidents a run has: those of the script, and those drawn from the seed.

The rule of this file: what is drawn depends on the scenario and the seed alone; each entry of a scenario has a
generator of its own, so that adding one moves no other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from sim.arena.incidents import SHARED, ArenaKind
from sim.arena.luck import Stream, generator
from sim.arena.priors import AFTERSHOCK_GAP_S, HOLD_MEDIAN_S, HOLD_SIGMA
from sim.arena.scenario import Recurring, Scenario, Scripted

# Nothing random begins before a policy can know what is normal.
_QUIET_S = 300.0
_TIMES = ("climb_s", "on_s", "off_s", "gap_s", "lag_s")
_SPREAD = 0.4
_HOLD_LIMITS = (0.2, 4.0)
_Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One incident: its kind, its numbers, and (endpoint index, start in seconds) of everyone it strikes."""

    kind: ArenaKind
    numbers: Mapping[str, float]
    strikes: tuple[tuple[int, float], ...]


def occurrences(scenario: Scenario, seed: int, load: np.typing.NDArray[np.float64]) -> tuple[Occurrence, ...]:
    """Return every incident of a run by start; `load` is the expected arrivals of each second."""
    found: list[Occurrence] = []
    for index, scripted in enumerate(scenario.incidents):
        found.append(_scripted(scenario, scripted, generator(seed, Stream.INCIDENTS, low=index)))
    for index, recurring in enumerate(scenario.recurring):
        found.extend(_recurring(scenario, recurring, generator(seed, Stream.INCIDENTS, high=1, low=index), load))
    return tuple(sorted(found, key=lambda o: (o.strikes[0][1], o.strikes[0][0], o.kind)))


def _scripted(scenario: Scenario, incident: Scripted, rng: _Rng) -> Occurrence:
    numbers = incident.complete(incident.kind)
    return Occurrence(
        incident.kind, numbers, _strikes(incident.struck(scenario.endpoints), incident.at_s, numbers, rng)
    )


def _recurring(
    scenario: Scenario, entry: Recurring, rng: _Rng, load: np.typing.NDArray[np.float64]
) -> Iterator[Occurrence]:
    span_s = scenario.duration_s - _QUIET_S
    if span_s <= 0:
        return
    weights = (load if entry.follows_load else np.ones_like(load))[int(_QUIET_S) :]
    count = int(rng.poisson(entry.per_day * span_s / 86_400))
    starts = np.sort(_QUIET_S + rng.choice(len(weights), size=count, p=weights / weights.sum()) + rng.random(count))
    for start in starts.tolist():
        at_s, struck = start, _chosen(scenario, entry, rng)
        while at_s < scenario.duration_s:
            numbers = _varied(entry, rng)
            yield Occurrence(entry.kind, numbers, _strikes(struck, at_s, numbers, rng))
            if rng.random() >= entry.aftershock_chance:
                break
            gap_s = AFTERSHOCK_GAP_S / entry.compression * np.exp(_SPREAD * rng.standard_normal())
            at_s += numbers.get("climb_s", 0.0) + numbers.get("hold_s", 0.0) + float(gap_s)


def _varied(entry: Recurring, rng: _Rng) -> dict[str, float]:
    """Return the numbers of one occurrence: durations log-normal around their medians, severity somewhat up or down."""
    numbers = entry.complete(entry.kind)
    if "hold_s" in numbers:
        median_s = HOLD_MEDIAN_S / entry.compression if entry.hold_s is None else entry.hold_s
        factor = np.clip(np.exp(HOLD_SIGMA * rng.standard_normal()), *_HOLD_LIMITS)
        numbers["hold_s"] = float(max(median_s * factor, 5.0))
    for name in _TIMES:
        if name in numbers:
            numbers[name] *= float(np.exp(_SPREAD * rng.standard_normal()))
    if "peak" in numbers:
        numbers["peak"] = 1 + (numbers["peak"] - 1) * float(rng.uniform(0.6, 1.5))
    if "probability" in numbers:
        numbers["probability"] = min(1.0, numbers["probability"] * float(rng.uniform(0.6, 1.2)))
    return numbers


def _chosen(scenario: Scenario, entry: Recurring, rng: _Rng) -> tuple[int, ...]:
    struck = entry.struck(scenario.endpoints)
    if entry.kind not in SHARED:
        return (struck[int(rng.integers(len(struck)))],)
    if entry.named:
        return struck
    attribute = "region" if entry.kind is ArenaKind.REGIONAL else "provider"
    domains = sorted({getattr(endpoint, attribute) for endpoint in scenario.endpoints})
    domain = domains[int(rng.integers(len(domains)))]
    return tuple(i for i, endpoint in enumerate(scenario.endpoints) if getattr(endpoint, attribute) == domain)


def _strikes(
    struck: tuple[int, ...], at_s: float, numbers: Mapping[str, float], rng: _Rng
) -> tuple[tuple[int, float], ...]:
    """Everyone is struck at once, or (with a lag) each within it after the first."""
    lags = rng.uniform(0, numbers.get("lag_s", 0.0), len(struck))
    lags[int(rng.integers(len(struck)))] = 0.0
    strikes = [(index, at_s + lag) for index, lag in zip(struck, lags.tolist(), strict=True)]
    return tuple(sorted(strikes, key=lambda strike: (strike[1], strike[0])))
