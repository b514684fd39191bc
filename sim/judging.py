"""Forecasts of simulated worlds, judged against the truth: samples to train on, alarms to count, incidents to catch.

The rule of this file: an incident counts as caught by the moment the endpoint's attempts show it degraded (by the same
label rule as history), not by the script of the fault; what the script adds is when it began and of what kind it is.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scoring.alarms import Interval, Series
from scoring.features import NAMES, Member, in_domain, matrix
from scoring.forecaster import Forecaster
from scoring.labels import degraded_moments, labels
from scoring.metrics import Caught, caught, lead_s
from sim.incidents import IncidentKind
from sim.traffic import play, traces
from sim.world import START_S, Setting, make_world

_Floats = npt.NDArray[np.float64]
# An endpoint that was already degraded this shortly before has no beginning to be caught.
_FRESH_S = 60.0
_LATE_S = 30.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """One incident of one endpoint: its kind, when its faults begin, when the first attempts show harm, and when it
    gets so bad that any breaker would notice (for a whole domain: at the last of its endpoints).
    """

    kind: IncidentKind
    begins: float
    harmful: float
    hard: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """One endpoint of one world at every tick.

    `x`: n × features; `y`: n labels; `usable`: n bools, where the label is known and the features are in the domain;
    `judged`: n bools, where the features are in the domain. `near` are the intervals in which an alarm is no false
    one.
    """

    setting: Setting
    time: _Floats
    x: _Floats
    y: npt.NDArray[np.int8]
    usable: npt.NDArray[np.bool_]
    judged: npt.NDArray[np.bool_]
    near: tuple[Interval, ...]
    troubles: tuple[Trouble, ...]

    def forecast_by(self, forecaster: Forecaster) -> npt.NDArray[np.bool_]:
        """Tell at which ticks `forecaster` has a word: elsewhere the reflex policy is alone, as in service."""
        return self.judged & forecaster.domain.covers(self.x)


def sample_world(seed: int, setting: Setting, tick_s: float) -> list[Sampled]:
    """Play the world of `seed` and sample each endpoint every `tick_s` seconds."""
    world = make_world(seed, setting)
    all_traces = traces(world)
    members = [Member(regime.place.provider, regime.place.region) for regime in world.regimes]
    times, rows = [], []
    for now, windows in play(all_traces, world.duration_s, tick_s):
        times.append(now)
        rows.append(matrix(members, windows, now))
    x = np.stack(rows, axis=1)
    found = []
    for i, (regime, trace) in enumerate(zip(world.regimes, all_traces, strict=True)):
        moments = degraded_moments(trace.attempts)
        label, judged = labels(trace.attempts, moments, times), in_domain(x[i])
        real = [
            incident
            for incident in world.incidents
            if regime.place in incident.places and incident.kind is not IncidentKind.DECOY
        ]
        near = [(START_S + incident.start_s, START_S + incident.end_s) for incident in real]
        troubles = [
            Trouble(incident.kind, begins, harmful, START_S + incident.hard_s)
            for incident, (begins, ends) in zip(real, near, strict=True)
            if (harmful := _first_harm(moments, begins, ends)) is not None
        ]
        found.append(
            Sampled(
                setting,
                np.array(times),
                x[i],
                label.y,
                label.known & judged,
                judged,
                (*near, *((moment, moment) for moment in moments)),
                tuple(troubles),
            )
        )
    return found


def _first_harm(moments: Sequence[float], begins: float, ends: float) -> float | None:
    if any(begins - _FRESH_S <= moment <= begins for moment in moments):
        return None
    return next((moment for moment in moments if begins < moment <= ends + _LATE_S), None)


def series_of(samples: Sequence[Sampled], forecaster: Forecaster) -> list[Series]:
    """Forecast every tick of every endpoint; where there is no forecast there is no risk."""
    return [Series(s.time, np.where(s.forecast_by(forecaster), forecaster.risks(s.x), 0.0), s.near) for s in samples]


def rows_of(samples: Sequence[Sampled], forecaster: Forecaster | None = None) -> tuple[_Floats, npt.NDArray[np.int8]]:
    """Return features and labels of all usable ticks; with a forecaster, of those alone at which it has a word."""
    chosen = [(s, s.usable if forecaster is None else s.usable & s.forecast_by(forecaster)) for s in samples]
    x = np.concatenate([np.empty((0, len(NAMES))), *(s.x[rows] for s, rows in chosen)])
    return x, np.concatenate([np.empty(0, dtype=np.int8), *(s.y[rows] for s, rows in chosen)])


def caught_by_kind(samples: Sequence[Sampled], all_series: Sequence[Series], threshold: float) -> dict[str, Caught]:
    """Return what was caught early, by `setting/kind`."""
    leads: dict[str, list[tuple[float | None, float]]] = defaultdict(list)
    for sampled, series in zip(samples, all_series, strict=True):
        for trouble in sampled.troubles:
            lead = lead_s(series.time, series.risk, threshold, trouble.begins, trouble.harmful)
            leads[f"{sampled.setting}/{trouble.kind}"].append((lead, trouble.harmful - trouble.begins))
    return {kind: caught(found) for kind, found in sorted(leads.items())}
