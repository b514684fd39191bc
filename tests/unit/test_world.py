import dataclasses
import math

import numpy as np
import pytest

from routing.counts import Counter
from routing.outcomes import Outcome
from scoring.artifact import checksum, load, load_manifest, save
from scoring.features import NAMES
from scoring.labels import degraded_moments
from scoring.registry import PRIOR
from sim.faults import Fault, FaultKind
from sim.incidents import Incident, IncidentKind, Place, incident_of
from sim.judging import rows_of, sample_world, series_of
from sim.prior import Size, train_prior
from sim.traffic import play, traces
from sim.world import START_S, Regime, Setting, World, make_world

PLACE = Place("p", "r")


def world_of(*faults: Fault, rate: float = 5.0, duration_s: int = 600) -> World:
    regime = Regime(PLACE, 0.2, 0.2, 0.0, 20, 200, 0.0, 0.0, 10.0, 0.0)
    incident = Incident(IncidentKind.ABRUPT, (PLACE,), 400.0, 403.0, 500.0, faults)
    return World(1, Setting.STEADY, duration_s, (regime,), (np.full(duration_s, rate),), (incident,))


def test_a_seed_makes_one_world() -> None:
    assert traces(make_world(5, Setting.COLD)) == traces(make_world(5, Setting.COLD))
    assert traces(make_world(5, Setting.COLD)) != traces(make_world(6, Setting.COLD))


def test_a_cold_world_begins_shortly_before_its_first_incident() -> None:
    worlds = [make_world(seed, Setting.COLD) for seed in range(40)]
    starts = [
        min(i.start_s for i in world.incidents if i.kind is not IncidentKind.DECOY)
        for world in worlds
        if any(i.kind is not IncidentKind.DECOY for i in world.incidents)
    ]
    assert len(starts) >= 20
    assert all(15 <= start <= 70 for start in starts)


@pytest.mark.parametrize("kind", [kind for kind in IncidentKind if kind is not IncidentKind.REGION])
def test_every_incident_lies_within_its_bounds(kind: IncidentKind) -> None:
    for seed in range(30):
        incident = incident_of(kind, PLACE, 100.0, np.random.default_rng(seed))
        assert incident.kind is kind
        assert min(fault.at_s for fault in incident.faults) == incident.start_s == 100.0
        assert max(fault.end_s for fault in incident.faults) == pytest.approx(incident.end_s)
        assert incident.start_s <= incident.hard_s <= incident.end_s + 15


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault(kind=FaultKind.ERROR_RATE, provider="p", at_s=400, for_s=100, probability=1.0), Outcome.SERVER_ERROR),
        (Fault(kind=FaultKind.RATE_LIMIT, provider="p", at_s=400, for_s=100), Outcome.RATE_LIMITED),
        (Fault(kind=FaultKind.HANG, provider="p", at_s=400, for_s=100), Outcome.TIMEOUT),
        (Fault(kind=FaultKind.REFUSE, provider="p", at_s=400, for_s=100), Outcome.CONNECT_ERROR),
        (Fault(kind=FaultKind.STALL, provider="p", at_s=400, for_s=100), Outcome.STALLED),
    ],
)
def test_a_fault_strikes_while_it_is_on(fault: Fault, outcome: Outcome) -> None:
    (trace,) = traces(world_of(fault))
    began = {o.attempt_id: o.time - START_S for o in trace.observations if o.kind == 0}
    for seen in trace.observations:
        if seen.kind == 2:
            struck = 400 <= began[seen.attempt_id] < 500
            assert seen.outcome is (outcome if struck else Outcome.OK)
    assert degraded_moments(trace.attempts)[0] - START_S > 400


def test_latency_follows_a_ramp() -> None:
    ramp = Fault(kind=FaultKind.LATENCY_RAMP, provider="p", at_s=400, for_s=100, peak=6)
    (trace,) = traces(world_of(ramp))
    logs = [(a.time - START_S, math.log(a.ttft_s)) for a in trace.attempts if a.ttft_s]
    usual = np.mean([value for at, value in logs if at < 400])
    late = np.mean([value for at, value in logs if 490 < at < 500])
    assert math.exp(late - usual) == pytest.approx(5.7, rel=0.15)


def test_windows_see_every_attempt_once_and_nothing_early() -> None:
    (trace,) = traces(world_of())
    for now, (window,) in play([trace], 600, 10.0):
        started = sum(o.kind == 0 and o.time < now for o in trace.observations)
        ended = sum(o.kind == 2 and o.time < now for o in trace.observations)
        assert window.in_flight == started - ended
        if now < START_S + 300:
            assert window.sums(now, 300)[Counter.STARTED] == started


def test_the_truth_of_a_world_is_what_its_attempts_show() -> None:
    found = [sampled for seed in range(4) for sampled in sample_world(seed, Setting.STEADY, 10.0)]
    for sampled in found:
        assert len(sampled.x) == len(sampled.y) == len(sampled.usable) == len(sampled.time)
        assert not (sampled.usable & ~sampled.judged).any()
        for trouble in sampled.troubles:
            before = np.flatnonzero((sampled.time >= trouble.harmful - 50) & (sampled.time < trouble.harmful))
            assert sampled.y[before].all()
    assert sum(len(sampled.troubles) for sampled in found) >= 5


def test_the_prior_is_reproducible_and_honest(tmp_path_factory: pytest.TempPathFactory) -> None:
    size = Size(steady=(3, 1, 1), cold=(3, 1, 1), sparse=(0, 1, 1), shifted=(0, 0, 1))
    first, second = train_prior(3, size), train_prior(3, size)
    assert first == second
    assert first.manifest.arrays_sha256 == checksum(first.arrays)
    directory = tmp_path_factory.mktemp("prior")
    save(directory, first.arrays, first.manifest)
    assert load_manifest(directory) == first.manifest


def test_a_usual_attempt_keeps_within_the_timeout() -> None:
    """Nobody sets a timeout that one attempt in twenty runs into: such a world has no ordinary day."""
    for seed in range(6):
        world = make_world(seed, Setting.SHIFTED)
        quiet = dataclasses.replace(world, incidents=())
        attempts = [attempt for trace in traces(quiet) for attempt in trace.attempts]
        assert sum(attempt.outcome is Outcome.TIMEOUT for attempt in attempts) < 0.01 * len(attempts)


def test_only_a_stream_tells_how_long_it_generated() -> None:
    """As in service: a whole reply has no first byte to count from."""
    ended = [seen for trace in traces(make_world(9, Setting.STEADY)) for seen in trace.observations if seen.kind == 2]
    streams = [seen for seen in ended if seen.ttft_s is not None]
    whole = [seen for seen in ended if seen.reply_s is not None]
    assert min(len(streams), len(whole)) > 1000
    assert all(seen.generation_s > 0 for seen in streams)
    assert all(seen.generation_s == 0 for seen in whole)


def test_a_forecaster_is_judged_only_where_it_has_a_word() -> None:
    """As in service, where the reflex is alone outside what the forecaster was trained on."""
    forecaster = load(PRIOR).forecaster
    found = sample_world(3, Setting.COLD, 5.0)
    abroad = [dataclasses.replace(s, x=np.where(s.usable[:, None], s.x - 1e3, s.x)) for s in found]
    assert len(rows_of(found, forecaster)[1]) > 20
    assert len(rows_of(abroad, forecaster)[1]) == 0
    assert all(not series.risk[s.usable].any() for s, series in zip(abroad, series_of(abroad, forecaster), strict=True))
    assert rows_of([], forecaster)[0].shape == (0, len(NAMES))
