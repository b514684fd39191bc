"""When requests arrive and how large they are.

The rule of this file: gaps of mean 1 (memoryless, or those of a real trace) are stretched by the rate of each moment,
by time change: the n-th request arrives when the integral of the rate reaches the sum of the first n gaps. So a trace
keeps its burstiness under any load profile.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.arena.luck import Stream, generator
from sim.arena.scenario import Arrivals, Process, Scenario
from sim.traces import TraceName, load_trace

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """n requests in order of arrival: `arrival_s` float64 in [0, duration_s), token counts and session int64."""

    arrival_s: _Floats
    input_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    session: npt.NDArray[np.int64]


def make_workload(scenario: Scenario, seed: int) -> Workload:
    """Draw the requests. A trace starts at a random place and begins again when it ends; arrivals and sizes of the same
    trace stay together.
    """
    rng = generator(seed, Stream.ARRIVALS)
    load = load_profile(scenario.arrivals, scenario.duration_s, seed)
    work = np.concatenate([[0.0], np.cumsum(load)])
    start = int(rng.integers(1 << 30))
    gaps = _gaps(scenario.arrivals.process, work[-1], start, rng)
    due = np.cumsum(gaps)
    due = due[due < work[-1]]
    arrival_s = np.interp(due, work, np.arange(len(work), dtype=np.float64))
    # Rounding in the interpolation must not push the last request over the end.
    arrival_s = np.minimum(arrival_s, np.nextafter(scenario.duration_s, 0))
    trace = load_trace(scenario.sizes)
    rows = (start + np.arange(len(due))) % len(trace.gaps)
    session = generator(seed, Stream.SESSIONS).integers(scenario.sessions, size=len(due))
    return Workload(arrival_s, trace.input_tokens[rows], trace.output_tokens[rows], session)


def load_profile(arrivals: Arrivals, duration_s: int, seed: int) -> _Floats:
    """Return the expected arrivals of each second: daily swing (lowest at 0) times bursts."""
    rng = generator(seed, Stream.LOAD)
    seconds = np.arange(duration_s) + 0.5
    swing = 1 - arrivals.diurnal_amplitude * np.cos(2 * np.pi * seconds / arrivals.diurnal_period_s)
    burst = np.ones(duration_s)
    starts = rng.uniform(0, duration_s, rng.poisson(arrivals.bursts_per_day * duration_s / 86_400))
    for start in starts:
        burst[int(start) : int(start + arrivals.burst_s)] = arrivals.burst_factor
    load: _Floats = arrivals.rate_per_s * swing * burst
    return load


def _gaps(process: Process, total: float, start: int, rng: np.random.Generator) -> _Floats:
    if process is Process.POISSON:
        return rng.exponential(size=int(total + 8 * np.sqrt(total) + 16))
    gaps = load_trace(TraceName(process.value)).gaps
    turned = np.roll(gaps, -(start % len(gaps)))
    # Mean 1, so a whole turn of the trace covers len(gaps) of the total.
    return np.tile(turned, int(total / len(gaps)) + 2)
