"""Faults are pure: what they do follows from the script, the time and the random numbers given."""

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.decode import FieldError
from sim.faults import Curve, Effect, Failure, Fault, FaultKind, draw, effect_at
from sim.quota import Quota, QuotaMeter


def _on_aurora(*faults: Fault, t_s: float, baseline: float = 0.0) -> Effect:
    return effect_at(faults, "aurora", "eu-west", t_s, baseline)


def test_a_fault_is_active_from_its_start_until_just_before_its_end() -> None:
    fault = Fault(kind=FaultKind.SERVER_ERROR, provider="aurora", at_s=10, for_s=5)
    struck = [t_s for t_s in (9.99, 10, 14.99, 15) if _on_aurora(fault, t_s=t_s).failures]
    assert struck == [10, 14.99]


def test_a_latency_ramp_climbs_then_breaks_down_then_is_over() -> None:
    ramp = Fault(
        kind=FaultKind.LATENCY_RAMP, provider="aurora", at_s=20, for_s=40, peak=6, probability=0.2, outage_s=15
    )
    assert _on_aurora(ramp, t_s=20).ttft_multiplier == 1
    middle = _on_aurora(ramp, t_s=32.5)
    assert middle.ttft_multiplier == pytest.approx(3.5)
    assert middle.failures[Failure.SERVER_ERROR] == pytest.approx(0.1)
    assert _on_aurora(ramp, t_s=44.999).ttft_multiplier == pytest.approx(6, abs=1e-3)
    assert _on_aurora(ramp, t_s=45).failures == {Failure.SERVER_ERROR: 1.0}
    assert _on_aurora(ramp, t_s=60) == Effect()


def test_a_ramp_that_is_shorter_than_its_fault_holds_its_peak() -> None:
    ramp = Fault(kind=FaultKind.LATENCY_RAMP, provider="aurora", ramp_s=10, peak=3)
    assert _on_aurora(ramp, t_s=1e6).ttft_multiplier == 3


def test_an_exponential_ramp_is_late_and_sudden() -> None:
    def multiplier(curve: Curve, t_s: float) -> float:
        ramp = Fault(kind=FaultKind.LATENCY_RAMP, provider="aurora", for_s=100, peak=32, curve=curve)
        return _on_aurora(ramp, t_s=t_s).ttft_multiplier

    assert multiplier(Curve.EXPONENTIAL, 20) == pytest.approx(2)
    assert multiplier(Curve.EXPONENTIAL, 80) == pytest.approx(16)
    assert multiplier(Curve.LINEAR, 50) == pytest.approx(16.5)


def test_errors_creep_up_to_their_probability() -> None:
    creep = Fault(kind=FaultKind.ERROR_RATE, provider="aurora", for_s=60, ramp_s=40, probability=0.4)
    shares = [_on_aurora(creep, t_s=t_s).failures[Failure.SERVER_ERROR] for t_s in (10, 20, 40, 59)]
    assert shares == pytest.approx([0.1, 0.2, 0.4, 0.4])


def test_overlapping_faults_join_as_independent_causes() -> None:
    effect = _on_aurora(
        Fault(kind=FaultKind.ERROR_RATE, provider="aurora", probability=0.5, status=502),
        Fault(kind=FaultKind.LATENCY_RAMP, provider="aurora", ramp_s=1, peak=2),
        Fault(kind=FaultKind.LATENCY_RAMP, region="eu-west", ramp_s=1, peak=3),
        Fault(kind=FaultKind.CRAWL, provider="aurora", tokens_per_s_multiplier=0.1),
        Fault(kind=FaultKind.RATE_LIMIT, provider="aurora", probability=0.5, retry_after_s=7),
        t_s=10,
        baseline=0.2,
    )
    assert effect.failures[Failure.SERVER_ERROR] == pytest.approx(0.6)
    assert (effect.ttft_multiplier, effect.tokens_per_s_multiplier) == (6, 0.1)
    assert (effect.status, effect.retry_after_s) == (502, 7)


def test_a_region_outage_refuses_for_every_provider_of_that_region_alone() -> None:
    outage = [Fault(kind=FaultKind.REGION_OUTAGE, region="eu-west")]
    assert effect_at(outage, "borealis", "eu-west", 0).refuse
    assert not effect_at(outage, "dune", "us-east", 0).refuse


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        (FaultKind.HANG, Failure.HANG),
        (FaultKind.RESET, Failure.RESET),
        (FaultKind.TRUNCATE, Failure.TRUNCATE),
        (FaultKind.STALL, Failure.STALL),
        (FaultKind.MALFORMED, Failure.MALFORMED),
        (FaultKind.SERVER_ERROR, Failure.SERVER_ERROR),
        (FaultKind.RATE_LIMIT, Failure.RATE_LIMITED),
    ],
)
def test_a_fault_without_a_probability_strikes_every_request(kind: FaultKind, failure: Failure) -> None:
    effect = _on_aurora(Fault(kind=kind, provider="aurora"), t_s=0)
    rng = Random(1)
    assert {draw(effect, rng) for _ in range(50)} == {failure}


def test_drawn_shares_follow_precedence_and_probability() -> None:
    effect = Effect(failures={Failure.RESET: 0.5, Failure.STALL: 0.5})
    rng = Random(7)
    drawn = Counter(draw(effect, rng) for _ in range(20_000))
    assert drawn[Failure.RESET] / 20_000 == pytest.approx(0.5, abs=0.02)
    assert drawn[Failure.STALL] / 20_000 == pytest.approx(0.25, abs=0.02)
    assert drawn[None] / 20_000 == pytest.approx(0.25, abs=0.02)


@given(st.dictionaries(st.sampled_from(Failure), st.floats(0.01, 1.0)), st.integers())
def test_a_draw_takes_one_random_number_whatever_the_effect(failures: dict[Failure, float], seed: int) -> None:
    drawn, counted = Random(seed), Random(seed)
    draw(Effect(failures=failures), drawn)
    counted.random()
    assert drawn.getstate() == counted.getstate()


@given(st.floats(0, 100), st.floats(0.01, 1.0), st.floats(0.05, 20))
def test_a_scaled_fault_does_the_same_at_the_scaled_time(t_s: float, probability: float, factor: float) -> None:
    ramp = Fault(
        kind=FaultKind.LATENCY_RAMP, provider="aurora", at_s=10, for_s=60, peak=5, probability=probability, outage_s=7
    )
    near_a_boundary = min(abs(t_s - boundary) for boundary in (10, 63, 70)) < 1e-6
    effect, scaled = _on_aurora(ramp, t_s=t_s), _on_aurora(ramp.scaled(factor), t_s=t_s * factor)
    assert near_a_boundary or scaled.ttft_multiplier == pytest.approx(effect.ttft_multiplier)
    assert near_a_boundary or scaled.failures == pytest.approx(effect.failures)


def test_a_scaled_quota_keeps_its_rate() -> None:
    quota = Fault(kind=FaultKind.RATE_LIMIT, provider="aurora", quota_tokens=6000, window_s=60, for_s=120).scaled(0.25)
    assert (quota.quota_tokens, quota.window_s, quota.end_s) == (1500, 15, 30)


def test_a_quota_grants_its_limit_in_each_window() -> None:
    meter, quota = QuotaMeter(), Quota(limit=10, window_s=60, since_s=5)
    assert meter.take(quota, 8, 5).remaining == 2
    refused = meter.take(quota, 3, 20)
    assert (refused.granted, refused.remaining, refused.reset_s) == (False, 2, 45)
    assert meter.take(quota, 2, 64.9).granted
    assert meter.take(quota, 10, 65).granted


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"kind": FaultKind.HANG}, ""),
        ({"kind": FaultKind.HANG, "provider": "a", "peak": 2.0}, "peak"),
        ({"kind": FaultKind.LATENCY_RAMP, "provider": "a", "for_s": 5.0}, "peak"),
        ({"kind": FaultKind.LATENCY_RAMP, "provider": "a", "peak": 2.0}, "ramp_s"),
        ({"kind": FaultKind.LATENCY_RAMP, "provider": "a", "peak": 0.5, "for_s": 5.0}, "peak"),
        ({"kind": FaultKind.LATENCY_RAMP, "provider": "a", "peak": 2.0, "for_s": 5.0, "outage_s": 6.0}, "outage_s"),
        ({"kind": FaultKind.ERROR_RATE, "provider": "a"}, "probability"),
        ({"kind": FaultKind.ERROR_RATE, "provider": "a", "probability": 1.1}, "probability"),
        ({"kind": FaultKind.ERROR_RATE, "provider": "a", "probability": math.nan}, "probability"),
        ({"kind": FaultKind.SERVER_ERROR, "provider": "a", "status": 404}, "status"),
        ({"kind": FaultKind.HANG, "provider": "a", "for_s": 0.0}, "for_s"),
        ({"kind": FaultKind.HANG, "provider": "a", "at_s": -1.0}, "at_s"),
        ({"kind": FaultKind.CRAWL, "provider": "a"}, "tokens_per_s_multiplier"),
        ({"kind": FaultKind.REGION_OUTAGE, "provider": "a"}, "region"),
        ({"kind": FaultKind.REGION_OUTAGE, "provider": "a", "region": "eu"}, "provider"),
        ({"kind": FaultKind.RATE_LIMIT, "provider": "a", "quota_tokens": 5}, "quota_tokens"),
        (
            {"kind": FaultKind.RATE_LIMIT, "provider": "a", "quota_tokens": 5, "window_s": 1.0, "probability": 0.5},
            "probability",
        ),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_by_the_name_of_its_field(
    parameters: dict[str, object], field: str
) -> None:
    with pytest.raises(FieldError) as refusal:
        Fault(**parameters)  # type: ignore[arg-type]  # wrong on purpose
    assert refusal.value.field == field
