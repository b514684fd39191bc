"""The truth of a world follows from scenario and seed: onsets, chances, arrivals, luck."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from routing.outcomes import Outcome
from sim.arena.incidents import ArenaKind
from sim.arena.luck import BLOCK, Luck
from sim.arena.scenario import Arrivals, Endpoint, Process, Recurring, Scenario, Scripted
from sim.arena.truth import FAILED, Trouble, make_world
from sim.arena.workload import load_profile, make_workload
from sim.faults import Failure
from sim.traces import TraceName, load_trace

ENDPOINTS = (
    Endpoint(id="a1", provider="alpha", region="eu", zone="a", ttft_ms=300, usd_per_mtok=1, error_rate=0.01),
    Endpoint(id="a2", provider="alpha", region="eu", zone="b", ttft_ms=300, usd_per_mtok=1),
    Endpoint(id="b", provider="beta", region="us", ttft_ms=400, usd_per_mtok=2),
)


def scenario(*incidents: Scripted, recurring: tuple[Recurring, ...] = (), duration_s: int = 600) -> Scenario:
    return Scenario(
        name="t", description="", duration_s=duration_s, arrivals=Arrivals(rate_per_s=5), endpoints=ENDPOINTS,
        incidents=incidents, recurring=recurring,
    )  # fmt: skip


def test_the_outcomes_stand_in_the_order_of_the_failures() -> None:
    assert len(FAILED) == len(Failure)
    assert FAILED[list(Failure).index(Failure.HANG)] is Outcome.TIMEOUT
    assert FAILED[list(Failure).index(Failure.RATE_LIMITED)] is Outcome.RATE_LIMITED
    assert FAILED[list(Failure).index(Failure.STALL)] is Outcome.STALLED


def test_an_abrupt_outage_has_its_onset_and_end_and_spares_its_neighbour_in_another_zone() -> None:
    world = make_world(scenario(Scripted(kind=ArenaKind.ABRUPT, at_s=100, hold_s=50, endpoint="a1")), 1)
    assert world.troubles == (Trouble(ArenaKind.ABRUPT, 0, 100.0, 150.0),)
    failure = world.truth.failure
    assert failure[0, 99] == pytest.approx(1 - 0.99 * 0.999)
    assert np.all(failure[0, 100:150] == 1)
    assert np.all(failure[1:] < 0.1)


def test_a_creep_begins_when_a_tenth_fails_and_a_queue_when_ttft_is_three_times_the_usual() -> None:
    creep = Scripted(kind=ArenaKind.ERROR_CREEP, at_s=100, climb_s=100, hold_s=20, probability=1, endpoint="b")
    queue = Scripted(kind=ArenaKind.QUEUE, at_s=100, climb_s=120, hold_s=20, peak=12, endpoint="a2")
    creeping, queueing = sorted(make_world(scenario(creep, queue), 1).troubles, key=lambda t: -t.endpoint)
    assert 108 <= creeping.onset_s <= 110
    assert creeping.end_s == 220
    assert 100 + 120 * 0.6 < queueing.onset_s < 100 + 120 * 0.9


def test_a_decoy_has_no_onset_and_a_flapping_endpoint_one() -> None:
    flaps = Scripted(kind=ArenaKind.FLAPPING, at_s=300, on_s=10, off_s=20, times=3, endpoint="b")
    world = make_world(scenario(Scripted(kind=ArenaKind.DECOY, at_s=100, endpoint="a1"), flaps), 1)
    assert world.troubles == (Trouble(ArenaKind.FLAPPING, 2, 300.0, 370.0),)


def test_an_aftershock_is_an_incident_of_its_own() -> None:
    shocks = Scripted(kind=ArenaKind.AFTERSHOCKS, at_s=100, hold_s=40, gap_s=61, times=2, endpoint="b")
    spans = [(trouble.onset_s, trouble.end_s) for trouble in make_world(scenario(shocks), 1).troubles]
    assert spans == [(100, 140), (201, 221), (282, 292)]


def test_overlapping_incidents_of_an_endpoint_are_one() -> None:
    both = (
        Scripted(kind=ArenaKind.HANG, at_s=100, hold_s=50, endpoint="b"),
        Scripted(kind=ArenaKind.STALL, at_s=140, hold_s=60, endpoint="b"),
    )
    assert make_world(scenario(*both), 1).troubles == (Trouble(ArenaKind.HANG, 2, 100.0, 200.0),)


def test_a_crawl_is_an_incident_because_callers_run_out_of_time() -> None:
    world = make_world(scenario(Scripted(kind=ArenaKind.CRAWL, at_s=100, hold_s=60, speed=0.02, endpoint="b")), 1)
    late = world.truth.late[2, 120]
    longest = load_trace(TraceName.AZURE_CONV).output_tokens
    assert late == pytest.approx(np.mean(longest > (60 - 0.4) * 60 * 0.02))
    assert world.troubles[0].onset_s == 100


def test_a_regional_outage_strikes_the_whole_region_within_its_lag() -> None:
    world = make_world(scenario(Scripted(kind=ArenaKind.REGIONAL, at_s=100, lag_s=20, region="eu")), 3)
    onsets = {trouble.endpoint: trouble.onset_s for trouble in world.troubles}
    assert onsets.keys() == {0, 1}
    assert min(onsets.values()) == 100
    assert max(onsets.values()) <= 120


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    drawn = scenario(recurring=(Recurring(kind=ArenaKind.QUEUE, per_day=300),), duration_s=3600)

    def digest(seed: int) -> str:
        world = make_world(drawn, seed)
        work = world.workload
        arrays = (world.truth.failing, world.truth.slowness, work.arrival_s, work.output_tokens, work.session)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    assert digest(7) == digest(7)
    assert digest(7) != digest(8)


def test_an_added_entry_moves_no_other() -> None:
    first = Recurring(kind=ArenaKind.HANG, per_day=200, endpoint="a1")
    second = Recurring(kind=ArenaKind.ABRUPT, per_day=200, endpoint="b")
    alone = make_world(scenario(recurring=(first,), duration_s=3600), 5).troubles
    assert alone
    assert set(make_world(scenario(recurring=(first, second), duration_s=3600), 5).troubles) >= set(alone)


def test_luck_depends_on_request_attempt_and_endpoint_alone() -> None:
    forward, backward = Luck(9, 3), Luck(9, 3)
    asked = [(request, attempt) for request in (0, 1, BLOCK, 70 * BLOCK) for attempt in (0, 1, 5)]
    there = {key: forward.attempt(*key) for key in asked}
    assert {key: backward.attempt(*key) for key in reversed(asked)} == there
    values = [tuple(draws) for rows, _ in there.values() for draws in rows]
    assert len(set(values)) == len(values)
    assert Luck(10, 3).attempt(0, 0) != there[0, 0]


def test_luck_is_uniform_and_normal() -> None:
    rows = [draws for request in range(8 * BLOCK) for draws in Luck(2, 2).attempt(request, 0)[0][:1]]
    uniform, normal = np.array(rows)[:, 0], np.array(rows)[:, 1]
    assert 0 <= uniform.min() <= uniform.max() < 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.03)
    assert normal.std() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("process", list(Process))
def test_arrivals_follow_the_rate_whatever_the_process(process: Process) -> None:
    base = scenario(duration_s=7200)
    load = Arrivals(process=process, rate_per_s=4, diurnal_amplitude=0.8, diurnal_period_s=7200)
    arrival_s = make_workload(replace(base, arrivals=load), 3).arrival_s
    assert np.all(np.diff(arrival_s) >= 0)
    assert 0 <= arrival_s[0] <= arrival_s[-1] < 7200
    busy = np.mean((arrival_s > 1800) & (arrival_s < 5400))
    if process is not Process.AZURE_CODE:  # its pauses of minutes hide any profile
        assert len(arrival_s) == pytest.approx(4 * 7200, rel=0.03)
        assert busy == pytest.approx(0.5 + 0.8 / np.pi, abs=0.03)


def test_a_trace_keeps_its_sizes_beside_its_arrivals() -> None:
    replayed = replace(
        scenario(duration_s=3600),
        arrivals=Arrivals(process=Process.MOONCAKE, rate_per_s=3.4),
        sizes=TraceName.MOONCAKE,
    )
    work, trace = make_workload(replayed, 11), load_trace(TraceName.MOONCAKE)
    start = next(
        i for i in range(len(trace.gaps))
        if np.array_equal(np.roll(trace.input_tokens, -i)[:50], work.input_tokens[:50])
    )  # fmt: skip
    gaps = np.roll(trace.gaps, -start)[1:50] / 3.4
    assert np.diff(work.arrival_s)[:49] == pytest.approx(gaps, abs=1e-6)


def test_bursts_multiply_the_rate() -> None:
    quiet, bursty = Arrivals(rate_per_s=2), Arrivals(rate_per_s=2, bursts_per_day=500, burst_factor=5, burst_s=10)
    assert set(load_profile(quiet, 3600, 1)) == {2.0}
    assert set(load_profile(bursty, 3600, 1)) == {2.0, 10.0}
