"""A stretch of recorded history as worlds of the arena, drawn from what its attempts show.

The rule of this file: what was observed is the only input; where it leaves room, each seed draws another world that it
allows, so that the spread over seeds is the doubt about the past. What a replay cannot know: limits that depend on how
much a policy sends (a 429 comes with its recorded chance, whatever the load), and trouble of an endpoint that nobody
called.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from analytics.replay import Demand, Incident, Observed, ReplaySource
from routing.outcomes import Outcome
from sim.arena.incidents import ArenaKind
from sim.arena.luck import Stream, generator
from sim.arena.scenario import Arrivals, Scenario
from sim.arena.truth import FAILED, Trouble, Truth, World
from sim.arena.workload import Workload
from sim.replay.recorded import Normal, Recorded
from sim.replay.strands import Strand, count_strand, draw_levels, draw_rates, level_strand, seen

_MIN_S = 60
_USUAL_INPUT_TOKENS, _USUAL_OUTPUT_TOKENS = 500.0, 200.0
_NO_PAUSE_S = 1.0
_PAUSE_REACH_S = 600.0
_SLOWEST, _FASTEST = 100.0, 0.2
_PACES = (0.01, 5.0)
_PACE_VARIANCE = 0.04
_KINDS = {
    "": ArenaKind.QUEUE,
    Outcome.RATE_LIMITED.value: ArenaKind.RATE_LIMIT,
    Outcome.TIMEOUT.value: ArenaKind.HANG,
    Outcome.STALLED.value: ArenaKind.STALL,
}

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Span:
    """Unix seconds: requests of [begin, end) are judged, after a warm-up from `warm_from` on. `stands_for` hours of
    history are represented by each of its hours (1 unless hours were sampled).
    """

    warm_from: float
    begin: float
    end: float
    stands_for: float = 1.0

    @property
    def warm_s(self) -> float:
        """Length of the warm-up."""
        return self.begin - self.warm_from


@dataclass(frozen=True, slots=True, eq=False)
class EndpointChronicle:
    """One endpoint's stretches of failure rates, of time to first token and of speed, with its good days."""

    normal: Normal
    rates: Strand
    slowness: Strand
    pace: Strand


@dataclass(frozen=True, slots=True, eq=False)
class Chronicle:
    """Everything a world of this span is drawn from; seconds count from `span.warm_from`.

    `seen`: endpoints × seconds, whether there is evidence within 30 s. `demand` is what was recorded for the
    requests of the workload.
    """

    scenario: Scenario
    recorded: Recorded
    span: Span
    workload: Workload
    endpoints: tuple[EndpointChronicle, ...]
    seen: npt.NDArray[np.bool_]
    retry_after_s: _Floats
    troubles: tuple[Trouble, ...]
    demand: Demand

    @property
    def warm_s(self) -> float:
        """Length of the warm-up."""
        return self.span.warm_s

    @property
    def began(self) -> float:
        """The unix time at which the warm-up ends."""
        return self.span.begin

    @property
    def stands_for(self) -> float:
        """How many hours each hour of this span represents."""
        return self.span.stands_for

    @property
    def counted_s(self) -> float:
        """How long requests count: in a span of less than a minute, until the end of that minute."""
        return self.scenario.duration_s - self.warm_s

    def world(self, seed: int) -> World:
        """Draw a world that the evidence allows. The same seed draws the same world."""
        rng = generator(seed, Stream.INCIDENTS)
        seconds = self.retry_after_s.shape[1]
        failing = np.stack(
            [
                np.cumsum(draw_rates(one.rates, np.array(one.normal.rates), seconds, rng), axis=1).clip(0, 1)
                for one in self.endpoints
            ]
        )
        slowness = np.stack([draw_levels(one.slowness, seconds, rng) for one in self.endpoints])
        pace = np.stack([draw_levels(one.pace, seconds, rng) for one in self.endpoints])
        slowness, pace = slowness.clip(_FASTEST, _SLOWEST), pace.clip(*_PACES)
        truth = Truth(failing, slowness, pace, self._late(slowness, pace), self.retry_after_s)
        normal_ttft_s = self.endpoints[0].normal.ttft_s
        return World(self.scenario, seed, self.recorded.endpoints, self.workload, truth, self.troubles, normal_ttft_s)

    def _late(self, slowness: _Floats, pace: _Floats) -> _Floats:
        lengths = np.sort(self.workload.output_tokens)
        ttft_s = np.array([one.normal.ttft_s for one in self.endpoints])[:, None] * slowness
        speed = np.array([one.normal.tokens_per_s for one in self.endpoints])[:, None] * pace
        most_tokens = np.maximum(self.scenario.deadline_s - ttft_s, 0) * speed
        late: _Floats = 1 - np.searchsorted(lengths, most_tokens, side="right") / max(1, len(lengths))
        return late


def read_chronicle(recorded: Recorded, source: ReplaySource, span: Span, deadline_s: float) -> Chronicle:
    """Read the span; callers are taken to wait `deadline_s`. A span shorter than a minute is extended to one."""
    duration_s = max(_MIN_S, ceil(span.end - span.warm_from))
    seconds = int(duration_s + deadline_s) + 2
    demand = source.demand(span.warm_from, span.end)
    observed = source.observed(recorded.ids, span.warm_from, span.end)
    second = (observed.started - span.warm_from).astype(np.int64)
    arrival_s = demand.arrived - span.warm_from
    scenario = Scenario(
        name=recorded.model,
        description="recorded history",
        duration_s=duration_s,
        arrivals=Arrivals(rate_per_s=max(1, len(arrival_s)) / duration_s),
        endpoints=recorded.scenario_endpoints(),
        deadline_s=deadline_s,
    )
    input_tokens = _known(demand.input_tokens, _USUAL_INPUT_TOKENS)
    output_tokens = _known(demand.output_tokens, _USUAL_OUTPUT_TOKENS)
    workload = Workload(arrival_s, input_tokens, output_tokens, session=np.arange(len(arrival_s)))
    own = [observed.endpoint == e for e in range(len(recorded.endpoints))]
    return Chronicle(
        scenario=scenario,
        recorded=recorded,
        span=span,
        workload=workload,
        endpoints=tuple(
            _endpoint(normal, observed, second, mine) for normal, mine in zip(recorded.normals, own, strict=True)
        ),
        seen=np.stack([seen(second[mine], duration_s) for mine in own]),
        retry_after_s=_pauses(recorded, span, seconds),
        troubles=tuple(_troubles(recorded.incidents, span)),
        demand=demand,
    )


def _endpoint(
    normal: Normal, observed: Observed, second: npt.NDArray[np.int64], mine: npt.NDArray[np.bool_]
) -> EndpointChronicle:
    level, variance = _levels(normal, observed)
    timed = mine & ~np.isnan(level)
    streamed = mine & ~np.isnan(observed.tokens_per_s)
    pace = np.log(observed.tokens_per_s[streamed] / normal.tokens_per_s)
    return EndpointChronicle(
        normal=normal,
        rates=count_strand(second[mine], observed.kind_of_end[mine], len(FAILED) + 1),
        slowness=level_strand(second[timed], level[timed], variance[timed]),
        pace=level_strand(second[streamed], pace, np.full(len(pace), _PACE_VARIANCE)),
    )


def _levels(normal: Normal, observed: Observed) -> tuple[_Floats, _Floats]:
    """Return each success's log ratio to the usual time of its kind of evidence, NaN for others, and its variance."""
    is_ok, streamed = observed.kind_of_end == 0, ~np.isnan(observed.ttft_ms)
    level, variance = np.full(len(is_ok), np.nan), np.ones(len(is_ok))
    for name, chosen, took_ms in (
        ("ttft", is_ok & streamed & ~observed.probe, observed.ttft_ms),
        ("reply", is_ok & ~streamed & ~observed.probe, observed.latency_ms),
        ("probe", is_ok & observed.probe, observed.latency_ms),
    ):
        if name in normal.channels:
            median_s, sigma = normal.channels[name]
            level[chosen] = np.log(np.maximum(took_ms[chosen], 1e-3) / 1000 / median_s)
            variance[chosen] = sigma * sigma
    return level, variance


def _pauses(recorded: Recorded, span: Span, seconds: int) -> _Floats:
    """Return what a 429 of each second says: the last recorded pause, for ten minutes."""
    found = np.full((len(recorded.endpoints), seconds), _NO_PAUSE_S)
    for endpoint, when, pause_s in recorded.pauses:
        begin = when - span.warm_from
        if -_PAUSE_REACH_S < begin < seconds:
            found[endpoint, max(0, int(begin)) : max(0, int(begin + _PAUSE_REACH_S))] = max(_NO_PAUSE_S, pause_s)
    return found


def _troubles(incidents: tuple[Incident, ...], span: Span) -> list[Trouble]:
    return [
        Trouble(
            _KINDS.get(one.outcome, ArenaKind.ABRUPT),
            one.endpoint,
            one.begin - span.warm_from,
            one.end - span.warm_from,
        )
        for one in incidents
        if one.end >= span.warm_from and one.begin < span.end
    ]


def _known(tokens: _Floats, usual: float) -> npt.NDArray[np.int64]:
    """Give requests whose tokens nobody counted (they failed) the median of the others."""
    known = tokens[~np.isnan(tokens)]
    filled = np.nan_to_num(tokens, nan=float(np.median(known)) if len(known) else usual)
    return np.maximum(1, filled).astype(np.int64)
