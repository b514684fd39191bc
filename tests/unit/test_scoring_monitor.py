"""Drift that is injected is noticed, and calm is not mistaken for it."""

import dataclasses

import numpy as np
import pytest

from routing.outcomes import Outcome
from routing.window import Window
from scoring.artifact import load
from scoring.calibration import Calibration
from scoring.domain import domain_of
from scoring.drift import Histograms, PageHinkley, proportion_z, stability_index
from scoring.features import Member, in_domain, matrix
from scoring.forecaster import Forecaster
from scoring.labels import degraded_moments
from scoring.monitor import Doubt, Monitor
from scoring.reading import Reading
from scoring.registry import PRIOR
from sim.traffic import play, traces
from sim.world import START_S, Setting, make_world

MODEL = load(PRIOR)


def watch(seed: int, forecaster: Forecaster, setting: Setting = Setting.STEADY) -> list[Doubt]:
    """Let a forecaster serve a world of about an hour under a monitor; return all doubts."""
    world = make_world(seed, setting)
    members = [Member(regime.place.provider, regime.place.region) for regime in world.regimes]
    monitor = Monitor(forecaster.domain, 60.0, len(members))
    doubts: list[Doubt] = []
    for now, windows in play(traces(world), world.duration_s, 2.0):
        x = matrix(members, windows, now)
        judged = in_domain(x)
        risks = [float(r) if j else None for r, j in zip(forecaster.risks(x), judged, strict=True)]
        doubts += monitor.step(now, windows, x, risks, MODEL.manifest.threshold)
    return doubts


@pytest.mark.parametrize("seed", [501, 502, 503])
def test_a_forecaster_that_does_its_work_stays(seed: int) -> None:
    assert [doubt for doubt in watch(seed, MODEL.forecaster) if doubt.grave] == []


def test_a_forecaster_that_cries_wolf_is_doubted() -> None:
    """The world has drifted so far that everything looks risky: probabilities are off by a factor of e^6."""
    own = MODEL.forecaster.calibration
    wolf = dataclasses.replace(MODEL.forecaster, calibration=Calibration(own.slope, own.intercept + 6))
    grave = [doubt for doubt in watch(501, wolf) if doubt.grave]
    assert {"loss", "false_alarms_per_day"} & {doubt.metric for doubt in grave}
    assert all(doubt.value > doubt.limit for doubt in grave)


def test_the_rule_read_from_windows_is_that_of_the_labels() -> None:
    agreed = asked = found = 0
    for seed in (511, 512):
        world = make_world(seed, Setting.STEADY)
        all_traces = traces(world)
        moments = [np.array(degraded_moments(trace.attempts)) for trace in all_traces]
        for now, windows in play(all_traces, world.duration_s, 10.0):
            for said, degraded in zip(Reading(windows, now).degraded, moments, strict=True):
                truth = bool(((degraded > now - 5) & (degraded <= now)).any())
                asked += 1
                found += truth
                agreed += said == truth
    assert found > 30
    assert agreed / asked > 0.97


def test_page_hinkley_notices_a_rise_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    calm, test = rng.normal(0, 1, 2000), PageHinkley(delta=0.5, limit=15.0)
    assert not any(test.add(float(value)) for value in calm)
    delay = next(i for i, value in enumerate(rng.normal(2, 1, 100)) if test.add(float(value)))
    assert delay < 30
    falling = PageHinkley(delta=0.5, limit=15.0)
    assert not any(falling.add(float(value)) for value in [*calm, *rng.normal(-3, 1, 500)])


def test_the_stability_index_is_zero_without_change_and_names_what_moved() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(4000, domain_width()))
    deciles = np.quantile(x, np.linspace(0.1, 0.9, 9), axis=0)
    reference, same, moved = (Histograms(deciles) for _ in range(3))
    reference.add(x)
    same.add(rng.normal(size=x.shape))
    shifted = rng.normal(size=x.shape)
    shifted[:, 3] += 1.0
    moved.add(shifted)
    assert stability_index(reference, same).max() < 0.05
    index = stability_index(reference, moved)
    assert index.argmax() == 3
    assert index[3] > 0.5


def domain_width() -> int:
    return len(MODEL.forecaster.domain.low)


def test_features_that_move_in_service_are_named() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(25_000, domain_width()))
    monitor = Monitor(domain_of(x, np.zeros(len(x), np.int8)), 60.0, 1000)
    windows, risks = [Window() for _ in range(1000)], [0.01] * 1000
    doubts: list[Doubt] = []
    for tick in range(40):
        rows = rng.normal(size=(1000, domain_width()))
        rows[:, 7] += 2.0 * (tick >= 30)
        doubts += monitor.step(START_S + 10.0 * tick, windows, rows, risks, 0.9)
    named = {doubt.metric for doubt in doubts}
    assert len(named) == 1
    assert named.pop().startswith("stability_index:")
    assert not any(doubt.grave for doubt in doubts)


def test_probabilities_that_are_off_by_a_factor_ask_for_calibration() -> None:
    """Nothing ever happens where one forecast in twenty should come true: no alarm, but the probabilities are off."""
    x = np.zeros((20, domain_width()))
    monitor = Monitor(MODEL.forecaster.domain, 60.0, 20)
    windows = [Window() for _ in range(20)]
    doubts: list[Doubt] = []
    for second in range(0, 30_000, 10):
        now = START_S + second
        for window in windows:
            for i in range(2):
                window.started(f"{second}-{i}", now)
                window.finished(f"{second}-{i}", Outcome.OK, now, ttft_s=0.1 + 0.01 * i)
        doubts += monitor.step(now, windows, x, [0.05] * 20, 0.5)
    metrics = {doubt.metric: doubt for doubt in doubts}
    assert "calibration_in_the_large" in metrics
    assert metrics["calibration_in_the_large"].value < 1 / 3


def test_probes_and_live_attempts_are_compared_as_proportions() -> None:
    assert proportion_z(0, 50, 0, 500) == 0.0
    assert proportion_z(1, 0, 1, 10) == 0.0
    assert proportion_z(25, 50, 25, 500) > 8
    assert proportion_z(25, 500, 25, 50) < -8
