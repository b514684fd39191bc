"""What is really wrong, each second, at each endpoint; no policy ever sees it.

The rule of this file: everything follows from the scenario and the seed, to the byte. An incident's onset and end are
the first and the last second in which at least 10 % of requests would fail or TTFT is at least three times the usual;
a decoy therefore has none. More than a minute of health ends an incident: an aftershock is a new one, a flap is not.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from routing.outcomes import Outcome
from sim.arena.incidents import ArenaKind, faults_of
from sim.arena.luck import Luck
from sim.arena.policy import ArenaEndpoint
from sim.arena.scenario import Scenario
from sim.arena.schedule import Occurrence, occurrences
from sim.arena.workload import Workload, load_profile, make_workload
from sim.faults import Failure, Fault, effect_at
from sim.incidents import Place
from sim.traces import TraceName, load_trace

_Floats = npt.NDArray[np.float64]

FAILING = 0.1
SLOW = 3.0
# A failed attempt's outcome by its place in the cumulated chances; the order of `Failure` is its precedence.
FAILED: tuple[Outcome, ...] = (
    Outcome.CONNECT_ERROR,
    Outcome.TIMEOUT,
    Outcome.RATE_LIMITED,
    Outcome.SERVER_ERROR,
    Outcome.MALFORMED,
    Outcome.TRUNCATED,
    Outcome.STALLED,
)
_PLACE = {failure: place for place, failure in enumerate(Failure)}
_BASELINE_RETRY_AFTER_S = 1.0
_SAME_S = 60


@dataclass(frozen=True, slots=True)
class Trouble:
    """One incident of one endpoint, from the truth; in seconds of the run."""

    kind: ArenaKind
    endpoint: int
    onset_s: float
    end_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Arrays over (endpoint, second).

    Attributes:
        failing: float64 e × s × 7, the chance of the first so many outcomes of `FAILED`, cumulated; the last is the
            chance of any failure.
        slowness: float64 e × s, TTFT multiplier >= 1. pace: float64 e × s, multiplier (0, 1] of tokens per second.
        late: float64 e × s, the chance that the caller's deadline passes while a stream crawls.
        retry_after_s: float64 e × s, what a 429 says.
    """

    failing: _Floats
    slowness: _Floats
    pace: _Floats
    late: _Floats
    retry_after_s: _Floats

    @property
    def failure(self) -> _Floats:
        """The chance that a request fails, e × s: an outright failure, or too slow a stream."""
        return 1 - (1 - self.failing[:, :, -1]) * (1 - self.late)


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """One run's world: what all policies meet alike. `normal_ttft_s` is the preferred endpoint's healthy median."""

    scenario: Scenario
    seed: int
    endpoints: tuple[ArenaEndpoint, ...]
    workload: Workload
    truth: Truth
    troubles: tuple[Trouble, ...]
    normal_ttft_s: float

    def luck(self) -> Luck:
        """Return the draws of a run; each run takes its own."""
        return Luck(self.seed, len(self.endpoints))


def make_world(scenario: Scenario, seed: int) -> World:
    """Draw the world of a seed (>= 0)."""
    load = load_profile(scenario.arrivals, scenario.duration_s, seed)
    found = occurrences(scenario, seed, load)
    faults = _faults(scenario, found)
    truth = _truth(scenario, faults)
    endpoints = tuple(
        ArenaEndpoint(index, e.id, e.provider, e.region, e.zone, e.usd_per_mtok)
        for index, e in enumerate(scenario.endpoints)
    )
    troubles = _troubles(found, faults, truth)
    normal_ttft_s = scenario.endpoints[0].ttft_ms / 1000
    return World(scenario, seed, endpoints, make_workload(scenario, seed), truth, troubles, normal_ttft_s)


_Faults = dict[tuple[int, int], list[Fault]]


def _faults(scenario: Scenario, found: tuple[Occurrence, ...]) -> _Faults:
    """Return the faults by (number of the occurrence, endpoint)."""
    return {
        (number, index): faults_of(occurrence.kind, occurrence.numbers, _place(scenario, index), at_s)
        for number, occurrence in enumerate(found)
        for index, at_s in occurrence.strikes
    }


def _place(scenario: Scenario, index: int) -> Place:
    return Place(scenario.endpoints[index].provider, scenario.endpoints[index].region)


def _truth(scenario: Scenario, faults: _Faults) -> Truth:
    n, seconds = len(scenario.endpoints), int(scenario.duration_s + scenario.deadline_s) + 2
    chances = np.zeros((n, seconds, len(FAILED)))
    slowness, pace = np.ones((n, seconds)), np.ones((n, seconds))
    retry_after_s = np.full((n, seconds), _BASELINE_RETRY_AFTER_S)
    for index, endpoint in enumerate(scenario.endpoints):
        chances[index, :, _PLACE[Failure.SERVER_ERROR]] = endpoint.error_rate
        chances[index, :, _PLACE[Failure.RATE_LIMITED]] = endpoint.limited_rate
    for index, second, active in _active(faults, seconds):
        endpoint = scenario.endpoints[index]
        effect = effect_at(active, endpoint.provider, endpoint.region, second + 0.5, endpoint.error_rate)
        slowness[index, second], pace[index, second] = effect.ttft_multiplier, effect.tokens_per_s_multiplier
        for failure, chance in effect.failures.items():
            chances[index, second, _PLACE[failure]] = chance
        limited = effect.failures.get(Failure.RATE_LIMITED, 0.0)
        chances[index, second, _PLACE[Failure.RATE_LIMITED]] = 1 - (1 - limited) * (1 - endpoint.limited_rate)
        if effect.refuse:
            chances[index, second, _PLACE[Failure.RESET]] = 1.0
        if effect.retry_after_s is not None:
            retry_after_s[index, second] = effect.retry_after_s
    failing = 1 - np.cumprod(1 - chances, axis=2, dtype=np.float64)
    return Truth(failing, slowness, pace, _late(scenario, slowness, pace), retry_after_s)


def _active(faults: _Faults, seconds: int) -> list[tuple[int, int, list[Fault]]]:
    """Return (endpoint, second, faults that touch it) wherever there is any."""
    touching: dict[tuple[int, int], list[Fault]] = defaultdict(list)
    for (_, index), several in faults.items():
        for fault in several:
            for second in range(int(fault.at_s), min(seconds, int(fault.end_s) + 1)):
                touching[index, second].append(fault)
    return [(index, second, several) for (index, second), several in sorted(touching.items(), key=lambda kv: kv[0])]


def _late(scenario: Scenario, slowness: _Floats, pace: _Floats) -> _Floats:
    """Return the share of the trace's answers that would not end before the caller's deadline, at median speed."""
    lengths = _lengths(scenario.sizes)
    ttft_s = np.array([endpoint.ttft_ms / 1000 for endpoint in scenario.endpoints])[:, None] * slowness
    speed = np.array([endpoint.tokens_per_s for endpoint in scenario.endpoints])[:, None] * pace
    most_tokens = np.maximum(scenario.deadline_s - ttft_s, 0) * speed
    return 1 - np.searchsorted(lengths, most_tokens, side="right") / len(lengths)


@cache
def _lengths(name: TraceName) -> npt.NDArray[np.int64]:
    return np.sort(load_trace(name).output_tokens)


def _troubles(found: tuple[Occurrence, ...], faults: _Faults, truth: Truth) -> tuple[Trouble, ...]:
    degraded = (truth.failure >= FAILING) | (truth.slowness >= SLOW)
    alone: list[Trouble] = []
    for (number, index), several in faults.items():
        begin = int(min(fault.at_s for fault in several))
        end = int(max(fault.end_s for fault in several)) + 1
        hit = begin + np.flatnonzero(degraded[index, begin:end])
        spells = np.split(hit, np.flatnonzero(np.diff(hit) > _SAME_S + 1) + 1)
        kind = found[number].kind
        alone.extend(Trouble(kind, index, float(s[0]), float(s[-1] + 1)) for s in spells if len(s))
    return _merged(alone)


def _merged(alone: list[Trouble]) -> tuple[Trouble, ...]:
    """Join incidents of one endpoint that overlap; the first gives the kind."""
    merged: list[Trouble] = []
    for trouble in sorted(alone, key=lambda t: (t.endpoint, t.onset_s, t.end_s)):
        last = merged[-1] if merged else None
        if last is not None and last.endpoint == trouble.endpoint and trouble.onset_s <= last.end_s:
            merged[-1] = Trouble(last.kind, last.endpoint, last.onset_s, max(last.end_s, trouble.end_s))
        else:
            merged.append(trouble)
    return tuple(sorted(merged, key=lambda t: (t.onset_s, t.endpoint)))
