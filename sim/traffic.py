"""What each attempt of a world comes to, and the windows that see it.

The rule of this file: the fate of an attempt follows from `sim.faults.effect_at` at the moment it is sent; what the
windows are told is what a serving process would tell them, at the same moments.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from routing.outcomes import Outcome
from routing.window import Window
from scoring.labels import Attempt
from sim.faults import Effect, Failure, effect_at
from sim.world import START_S, Regime, World

_Rng = np.random.Generator
_Floats = npt.NDArray[np.float64]

_OUTCOMES = (
    Outcome.OK,
    Outcome.CONNECT_ERROR,
    Outcome.TIMEOUT,
    Outcome.RATE_LIMITED,
    Outcome.SERVER_ERROR,
    Outcome.MALFORMED,
    Outcome.TRUNCATED,
    Outcome.STALLED,
)
# The order of Failure is its precedence; an outcome's index is one more, because 0 is success.
_FAILURES = tuple(Failure)
_OK, _CONNECT_ERROR, _TIMEOUT, _RATE_LIMITED, _SERVER_ERROR, _MALFORMED, _TRUNCATED, _STALLED = range(8)


class Observation(NamedTuple):
    """One thing a window is told. `kind` 0: started, 1: first byte, 2: finished."""

    time: float
    kind: int
    attempt_id: str
    outcome: Outcome
    ttft_s: float | None
    reply_s: float | None
    output_tokens: int
    generation_s: float


@dataclass(frozen=True, slots=True)
class Trace:
    """All attempts of one endpoint (by time of their end) and all its observations (by time)."""

    attempts: tuple[Attempt, ...]
    observations: tuple[Observation, ...]


def traces(world: World) -> tuple[Trace, ...]:
    """Send every attempt of `world`, one trace per endpoint in the order of its regimes."""
    return tuple(
        _trace(world, regime, rates, np.random.default_rng([world.seed, 1, i]))
        for i, (regime, rates) in enumerate(zip(world.regimes, world.rates, strict=True))
    )


def feed(window: Window, seen: Observation) -> None:
    """Tell a window one observation."""
    if seen.kind == 0:
        window.started(seen.attempt_id, seen.time)
    elif seen.kind == 1:
        window.first_byte(seen.attempt_id, seen.time)
    else:
        window.finished(
            seen.attempt_id,
            seen.outcome,
            seen.time,
            ttft_s=seen.ttft_s,
            reply_s=seen.reply_s,
            output_tokens=seen.output_tokens,
            generation_s=seen.generation_s,
        )


def play(all_traces: Sequence[Trace], duration_s: float, tick_s: float) -> Iterator[tuple[float, list[Window]]]:
    """Feed one window per trace; yield (now, windows) at every tick from START_S + tick_s on."""
    windows = [Window() for _ in all_traces]
    positions = [0] * len(windows)
    for tick in range(1, int(duration_s / tick_s) + 1):
        now = START_S + tick * tick_s
        for i, trace in enumerate(all_traces):
            end = bisect_left(trace.observations, (now,), lo=positions[i])
            for seen in trace.observations[positions[i] : end]:
                feed(windows[i], seen)
            positions[i] = end
        yield now, windows


def _trace(world: World, regime: Regime, rates: _Floats, rng: _Rng) -> Trace:
    seconds = np.repeat(np.arange(world.duration_s), rng.poisson(rates))
    sent = np.sort(seconds + rng.random(len(seconds)))
    seconds = sent.astype(np.int64)
    n = len(sent)
    slowness, pace, refused, chances = _effects(world, regime)

    latency = regime.ttft_s * np.exp(regime.sigma * rng.standard_normal(n) - regime.sigma**2 / 2)
    latency *= slowness[seconds] * np.exp(_drift(world.duration_s, regime.drift, rng))[seconds]
    tokens = 1 + rng.poisson(regime.output_tokens, n)
    generation = tokens / (regime.tokens_per_s * pace[seconds]) * np.exp(0.2 * rng.standard_normal(n))
    whole = rng.random(n) < regime.reply_share

    code = _fates(chances[:, seconds], rng)
    code[refused[seconds]] = _CONNECT_ERROR
    waited = np.where(whole, latency + generation, latency)
    code[(code == _OK) & (waited > regime.timeout_s)] = _TIMEOUT

    held = latency + generation
    short = np.minimum(0.3 * latency, 1.0)
    held = np.where((code == _SERVER_ERROR) | (code == _RATE_LIMITED), short, held)
    held = np.where(code == _CONNECT_ERROR, 0.005, held)
    held = np.where(code == _TIMEOUT, regime.timeout_s, held)
    held = np.where(code == _STALLED, latency + regime.timeout_s, held)
    streams = ~whole & np.isin(code, (_OK, _TRUNCATED, _STALLED))
    # Microseconds, as history keeps them.
    start = np.round(START_S + sent, 6).tolist()
    end = np.round(START_S + sent + held, 6).tolist()
    first = np.round(START_S + sent + latency, 6).tolist()

    observations: list[Observation] = []
    attempts: list[Attempt] = []
    columns = (start, first, end, code.tolist(), streams.tolist(), latency.tolist(), waited.tolist(), tokens.tolist(),
               generation.tolist())  # fmt: skip
    for number, (began, byte, ended, fate, stream, ttft, reply, length, pace_s) in enumerate(
        zip(*columns, strict=True)
    ):
        outcome, name = _OUTCOMES[fate], str(number)
        good = fate == _OK
        ttft_s = ttft if good and stream else None
        reply_s = reply if good and not stream else None
        observations.append(Observation(began, 0, name, outcome, None, None, 0, 0.0))
        if stream:
            observations.append(Observation(byte, 1, name, outcome, None, None, 0, 0.0))
        observations.append(
            Observation(
                ended, 2, name, outcome, ttft_s, reply_s, length if good else 0, pace_s if good and stream else 0.0
            )
        )
        attempts.append(Attempt(ended, outcome, ttft_s))
    observations.sort(key=lambda seen: (seen.time, seen.kind))
    attempts.sort(key=lambda attempt: attempt.time)
    return Trace(tuple(attempts), tuple(observations))


def _effects(world: World, regime: Regime) -> tuple[_Floats, _Floats, npt.NDArray[np.bool_], _Floats]:
    """Per second: latency and speed multiplier, refusal, and the chance of each failure (failures × seconds)."""
    place, n = regime.place, world.duration_s
    slowness, pace, refused = np.ones(n), np.ones(n), np.zeros(n, dtype=np.bool_)
    chances = np.zeros((len(_FAILURES), n))
    chances[_FAILURES.index(Failure.SERVER_ERROR)] = regime.error_rate
    chances[_FAILURES.index(Failure.RATE_LIMITED)] = regime.limited_rate
    faults = [f for incident in world.incidents for f in incident.faults if f.targets(place.provider, place.region)]
    troubled = {s for f in faults for s in range(int(f.at_s), min(n, int(f.end_s) + 1))}
    for second in troubled:
        effect: Effect = effect_at(faults, place.provider, place.region, second + 0.5, regime.error_rate)
        slowness[second], pace[second] = effect.ttft_multiplier, effect.tokens_per_s_multiplier
        refused[second] = effect.refuse
        for failure, chance in effect.failures.items():
            chances[_FAILURES.index(failure), second] = chance
    return slowness, pace, refused, chances


def _fates(chances: _Floats, rng: _Rng) -> npt.NDArray[np.int64]:
    """Decide each attempt as `sim.faults.draw` does, all at once: independent causes in order of precedence."""
    struck_by = 1 - np.cumprod(1 - chances, axis=0)
    passed = np.sum(rng.random(chances.shape[1]) >= struck_by, axis=0)
    return np.where(passed == len(_FAILURES), _OK, passed + 1)


def _drift(duration_s: int, size: float, rng: _Rng) -> _Floats:
    """A log latency that wanders over minutes with a standard deviation of `size`."""
    keep = np.exp(-1 / 300)
    steps = rng.standard_normal(duration_s) * size * np.sqrt(1 - keep**2)
    out = np.empty(duration_s)
    value = rng.standard_normal() * size
    for i, step in enumerate(steps):
        value = keep * value + step
        out[i] = value
    return out
