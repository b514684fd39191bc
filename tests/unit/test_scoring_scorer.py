"""What the scoring process computes: alarms with their propensity and reasons, shadows, and silence out of domain."""

import dataclasses
from random import Random

import msgspec
import numpy as np
import pytest

from analytics.records import HealthRecord
from routing.outcomes import Outcome
from scoring.acting import CANARY_SHARE, AlarmDesk, Mode, share_kept
from scoring.artifact import Model, load
from scoring.domain import Domain
from scoring.features import NAMES, Group
from scoring.protocol import Batch, EndpointInfo, Forecast, Hello, Observation
from scoring.reasons import Contribution
from scoring.registry import PRIOR
from scoring.scorer import Scorer

START = 1_700_000_000.0
ENDPOINTS = [EndpointInfo("slow", "p1", "eu", "a", "m"), EndpointInfo("calm", "p2", "us", "b", "m")]


class Driven:
    """A scorer with 20 attempts per endpoint and second; "slow" takes as long as it is told."""

    def __init__(self, explore: float = 0.0, seed: int = 1) -> None:
        self.records: list[HealthRecord] = []
        hello = Hello(ENDPOINTS, "unused", "test", explore=explore)
        self.scorer = Scorer(hello, self.records.append, Random(seed))
        self.at = 0

    def second(self, ttft_s: float = 0.05, failing: float = 0.0, threshold: float | None = None) -> Forecast:
        seen = []
        for endpoint, (own_ttft_s, own_failing) in enumerate(((ttft_s, failing), (0.05, 0.0))):
            for i in range(20):
                name, began = f"{self.at}-{i}", START + self.at + i / 20
                ttft = own_ttft_s * (1 + 0.1 * ((7 * i + self.at) % 5))
                good = Observation("finished", endpoint, name, began + 0.02, Outcome.OK, ttft, None, 20, 0.2)
                bad = Observation("finished", endpoint, name, began + 0.01, Outcome.SERVER_ERROR)
                seen.append(Observation("started", endpoint, name, began))
                seen.append(bad if i < round(20 * own_failing) else good)
        self.at += 1
        forecast = self.scorer.take(Batch(START + self.at, seen, threshold=threshold))
        assert forecast is not None
        return forecast

    def ramp(self) -> list[Forecast]:
        """A calm minute, then latency climbs to six times the usual, and some attempts fail."""
        climbed = [max(0.0, min(1.0, (at - 60) / 25)) for at in range(100)]
        return [self.second(0.05 * (1 + 5 * c), 0.15 * c) for c in climbed]


def prior(**changed: object) -> Model:
    model = load(PRIOR)
    return Model(dataclasses.replace(model.forecaster, **changed), model.manifest)  # type: ignore[arg-type]


def test_an_alarm_is_recorded_with_its_reasons_when_it_begins() -> None:
    """F-09: the groups that raised the risk, their figures and what is normal, in the forecast and in history."""
    driven = Driven()
    driven.scorer.serve(prior())
    forecasts = driven.ramp()
    alarmed = [f for f in forecasts if "slow" in f.alarms]
    assert alarmed
    begun, *later = [f.alarms["slow"] for f in alarmed]
    assert {part.group for part in begun.why[:2]} == {Group.LATENCY.value, Group.FAILURES.value}
    assert begun.why[0].log_odds > 1
    assert begun.why[0].figures[0].value > begun.why[0].figures[0].normal
    assert all(note.why == () for note in later), "once per alarm"
    assert all("calm" not in f.alarms for f in forecasts)
    rows = [r for r in driven.records if r.explanation]
    assert [(r.endpoint, r.time) for r in rows] == [("slow", begun.since)]
    assert msgspec.json.decode(rows[0].explanation, type=tuple[Contribution, ...]) == begun.why
    assert {r.alarm for r in driven.records if r.endpoint == "calm"} == {""}


def test_the_threshold_of_the_policy_goes_before_the_models_own() -> None:
    driven = Driven()
    driven.scorer.serve(prior())
    for _ in range(40):
        forecast = driven.second(threshold=0.001)
    assert forecast.threshold == 0.001
    assert set(forecast.alarms) <= {"slow", "calm"}
    assert driven.second().threshold == load(PRIOR).manifest.threshold


def test_a_shadow_is_scored_and_recorded_but_not_acted_upon() -> None:
    driven = Driven()
    alarmist = dataclasses.replace(load(PRIOR).forecaster.calibration, intercept=50.0)
    shadow = prior(calibration=alarmist)
    driven.scorer.serve(prior(), Model(shadow.forecaster, dataclasses.replace(shadow.manifest, version="shadow-1")))
    for _ in range(40):
        forecast = driven.second()
    assert forecast.alarms == {}
    last = driven.records[-1]
    assert (last.shadow, last.forecaster) == ("shadow-1", load(PRIOR).manifest.version)
    assert last.shadow_risk is not None
    assert last.risk is not None
    assert last.shadow_risk > 0.99 > last.risk


def test_out_of_domain_the_reflex_is_left_alone() -> None:
    """F-20: features unlike anything in training get no forecast, and features are recorded all the same."""
    driven = Driven()
    elsewhere = np.full(len(NAMES), 1e6)
    domain = load(PRIOR).forecaster.domain
    driven.scorer.serve(prior(domain=Domain(elsewhere, elsewhere + 1, domain.normal, domain.deciles)))
    forecasts = driven.ramp()
    assert all(f.risks == {} and f.alarms == {} for f in forecasts)
    assert all(len(r.features) == len(NAMES) and r.risk is None for r in driven.records)


@pytest.mark.parametrize(("explore", "mode", "propensity"), [(0.0, "act", 1.0), (1.0, "canary", 1.0)])
def test_alarms_say_what_they_may_do_and_how_likely_that_was(explore: float, mode: str, propensity: float) -> None:
    driven = Driven(explore)
    driven.scorer.serve(prior())
    notes = [f.alarms["slow"] for f in driven.ramp() if "slow" in f.alarms]
    assert {note.mode for note in notes} == {mode}
    assert min(note.kept for note in notes) == (0.9 if mode == "canary" else pytest.approx(0.1, abs=0.4))
    assert {(r.alarm, r.propensity) for r in driven.records if r.alarm} == {(mode, propensity)}


def test_the_share_of_canaries_is_what_was_asked_for_and_holds_for_an_episode() -> None:
    desk, rng = AlarmDesk(0.2), Random(5)
    modes = []
    for episode in range(2000):
        begun = desk.step("e", 0.9, 0.5, episode * 10.0, rng.random())
        assert begun is not None
        assert begun.propensity == (0.2 if begun.mode is Mode.CANARY else 0.8)
        assert desk.step("e", 0.3, 0.5, episode * 10.0 + 1, rng.random()) == begun, "not below half the threshold"
        assert desk.step("e", 0.2, 0.5, episode * 10.0 + 2, rng.random()) is None
        modes.append(begun.mode)
    assert modes.count(Mode.CANARY) / len(modes) == pytest.approx(0.2, abs=0.03)


def test_f06_an_alarm_moves_the_majority_at_once_and_the_rest_as_the_risk_grows() -> None:
    shares = [share_kept(risk / 100, 0.6, 0.1) for risk in range(101)]
    assert shares[:31] == [1.0] * 31
    assert max(shares[31:]) < 0.4, "near one half, chance alone would swing the majority"
    assert shares[80:] == pytest.approx([0.1] * 21)
    steps = np.diff(shares[31:])
    assert (steps <= 1e-12).all()
    assert (steps >= -0.005).all()
    assert share_kept(0.99, 0.6, 0.5) == share_kept(0.61, 0.6, 0.5) == 0.5, "never below the floor"
    assert share_kept(0.99, 0.6, 0.1, Mode.CANARY) == 1 - CANARY_SHARE
    assert share_kept(0.2, 0.6, 0.1, Mode.CANARY) == 1.0
