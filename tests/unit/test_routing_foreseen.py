"""What a forecast alone may do: leave at once, come back at once when the risk stays away, and only for a better
place.
"""

from math import exp

import pytest

from routing.actions import Finished
from routing.engine import Engine
from routing.forecasts import Forecasts
from routing.health import Event, State
from routing.outcomes import Outcome
from routing.trust import Trust
from tests.routing_world import MODEL, bring_to_canary, eject, engine_of, observe, transitions_of

NOW = 1000.0
THRESHOLD = 0.4


def _hear(engine: Engine, now: float, **risks: float) -> list[Event]:
    """Hear a forecast and tick; return the events."""
    actions = [*engine.forecast(Forecasts(now, "hgb-7", THRESHOLD, risks), now), *engine.tick(now)]
    return [t.event for t in transitions_of(actions)]


def _admission(engine: Engine, name: str) -> float:
    (found,) = (c.facts.admission for c in engine.snapshot.candidates(MODEL) if c.facts.endpoint.id == name)
    return found


def _false_alarm(engine: Engine, name: str, start: float) -> list[float]:
    """Alarm for one second, then keep silent for 15; return what each second admits."""
    admitted = []
    for second in range(16):
        observe(engine, name, Outcome.OK, start + second)
        _hear(engine, start + second, **{name: 0.05 if second else 0.99})
        admitted.append(_admission(engine, name))
    return admitted


def test_f15_what_a_forecast_took_comes_back_at_once_when_the_risk_has_stayed_away() -> None:
    engine = engine_of("a", "b", now=NOW)
    assert _false_alarm(engine, "a", NOW) == [engine.policy.failback.degraded_share] * 15 + [1.0]
    assert engine.health_of("a").state is State.ACTIVE
    assert engine.health_of("a").relapses == 0, "nothing went wrong, so nothing is held against it"


def test_f15_a_risk_that_is_faint_for_five_seconds_is_over_when_enough_was_seen() -> None:
    """The exit of 0.4 is 0.2, and 0.02 is a tenth of that."""
    for per_second, risk, away_s in ((2, 0.02, 7), (2, 0.021, 17), (1, 0.02, 10)):
        engine = engine_of("a", "b", now=NOW)
        _hear(engine, NOW, a=0.99)
        for second in range(1, 20):
            for _ in range(per_second):
                observe(engine, "a", Outcome.OK, NOW + second)
            if Event.RELIEVED in _hear(engine, NOW + second, a=risk if second > 2 else 0.3):
                break
        assert second == away_s


def _of_spread_out_latency() -> Engine:
    """Two endpoints, one with ten minutes of answers around 0.2 s at a log spread of 0.4."""
    engine = engine_of("a", "b", now=NOW)
    for second in range(600):
        observe(engine, "a", Outcome.OK, NOW + second, ttft_s=0.2 * exp(0.4 if second % 2 else -0.4))
    return engine


def _alarm_then_faint(engine: Engine, per_second: int, faint_until: int) -> list[Event]:
    """Alarm for two seconds, faint risks until that second, then no forecasts; return the events of 12 s."""
    _hear(engine, NOW, a=0.99)
    events = []
    for tick in range(1, 48):
        now = NOW + tick / 4
        if tick % 4 == 0:
            for _ in range(per_second):
                observe(engine, "a", Outcome.OK, now)
            if tick // 4 <= faint_until:
                engine.forecast(Forecasts(now, "hgb-7", THRESHOLD, {"a": 0.01 if tick > 8 else 0.99}), now)
        events += [t.event for t in transitions_of(engine.tick(now))]
    return events


def test_f20_one_faint_forecast_is_not_five_seconds_of_them() -> None:
    """It is in force for five seconds, but whoever made it may be gone."""
    assert _alarm_then_faint(engine_of("a", "b", now=NOW), 3, faint_until=3) == []
    assert _alarm_then_faint(engine_of("a", "b", now=NOW), 3, faint_until=12) == [Event.RELIEVED]


def test_f15_a_faint_risk_without_an_attempt_since_gives_nothing_back() -> None:
    engine = engine_of("a", "b", now=NOW)
    _hear(engine, NOW, a=0.99)
    for second in range(1, 12):
        observe(engine, "a", Outcome.OK, NOW + second)
        assert _hear(engine, NOW + second, a=0.99) == []
    assert [e for second in range(12, 26) for e in _hear(engine, NOW + second, a=0.01)] == []
    observe(engine, "a", Outcome.OK, NOW + 26)
    assert _hear(engine, NOW + 26, a=0.01) == [Event.RELIEVED]


def test_f15_f20_what_is_slow_when_its_alarm_ends_is_not_given_everything_back() -> None:
    """Full service would be left again at once; and the alarm was right."""
    engine = _of_spread_out_latency()
    assert _hear(engine, NOW + 600, a=0.99) == [Event.FORECAST]
    events = []
    for second in range(601, 640):
        observe(engine, "a", Outcome.OK, NOW + second, ttft_s=0.2 * 2.6)
        events += _hear(engine, NOW + second, a=0.05)
        if events:
            break
    assert events == [Event.SLOW]
    assert engine._live["a"].trust.bar(THRESHOLD, NOW + 640) == THRESHOLD


def test_f06_f17_a_forecast_lets_a_limit_settle_before_it_doubts() -> None:
    """What it looks at still holds the refusals of a limit that is over; the slow start after it is guard enough."""
    engine = engine_of("a", "b", now=NOW)
    engine.finished(Finished("a", "refused", Outcome.RATE_LIMITED, retry_after_s=2.0), NOW)
    settled_at = NOW + 2 + engine.policy.forecast.settle_s
    assert _hear(engine, NOW + 3, a=0.99) == []
    assert _hear(engine, settled_at - 0.1, a=0.99) == [Event.RELIEVED]
    assert _hear(engine, settled_at, a=0.99) == [Event.FORECAST]


def test_f06_a_risk_that_wavers_does_not_swing_the_traffic() -> None:
    engine = engine_of("a", "b", now=NOW)
    events, admitted = [], []
    for second in range(60):
        events += _hear(engine, NOW + second, a=0.5 if second % 3 == 0 else 0.0)
        admitted.append(_admission(engine, "a"))
    assert set(admitted) == {engine.policy.failback.degraded_share}
    assert set(events) == {Event.FORECAST}


def test_f06_a_false_alarm_makes_the_next_one_harder_to_raise_there_and_nowhere_else() -> None:
    engine = engine_of("a", "b", now=NOW)
    _false_alarm(engine, "a", NOW)
    assert _hear(engine, NOW + 40, a=0.7) == []
    assert _hear(engine, NOW + 41, a=0.8) == [Event.FORECAST]
    engine = engine_of("a", "b", now=NOW)
    _false_alarm(engine, "a", NOW)
    assert _hear(engine, NOW + 40, b=0.6) == [Event.FORECAST]


def test_f06_an_alarm_that_is_hardly_believed_is_soon_over() -> None:
    """After a false alarm it takes 0.75 to leave, and 0.53 is little enough to return; before, it was 0.4 and 0.2."""
    engine = engine_of("a", "b", now=NOW)
    for second in range(20):
        observe(engine, "a", Outcome.OK, NOW + second)
        assert Event.RELIEVED not in _hear(engine, NOW + second, a=0.5)
    engine = engine_of("a", "b", now=NOW)
    _false_alarm(engine, "a", NOW)
    events = []
    for second in range(40, 60):
        observe(engine, "a", Outcome.OK, NOW + second)
        events += _hear(engine, NOW + second, a=0.5 if second > 40 else 0.99)
    assert events == [Event.FORECAST, Event.RELIEVED]


@pytest.mark.parametrize(("expected", "ratio", "found"), [(False, 2.6, True), (True, 2.6, False), (True, 3.1, True)])
def test_f06_in_alarm_a_few_latencies_that_are_slow_by_chance_prove_nothing(
    expected: bool, ratio: float, found: bool
) -> None:
    """Five values at a log spread of 0.4 have a standard error of 0.18, and 2.5 times exp(0.18) is 2.99."""
    engine = _of_spread_out_latency()
    if expected:
        assert _hear(engine, NOW + 600, a=0.99) == [Event.FORECAST]
    for i in range(5):
        observe(engine, "a", Outcome.OK, NOW + 620 + i / 5, ttft_s=0.2 * ratio)
    assert (Event.SLOW in engine.health_of("a").reasons) == found


@pytest.mark.parametrize("risk", [0.99, 0.25])
def test_f06_a_risk_that_stays_is_refuted_when_nothing_has_come_of_it_for_ten_minutes(risk: float) -> None:
    """Also one between the exit and the threshold, which would neither move the traffic nor give it back."""
    engine = engine_of("a", "b", now=NOW)
    assert _hear(engine, NOW, a=0.99) == [Event.FORECAST]
    for second in range(1, 600):
        observe(engine, "a", Outcome.OK, NOW + second)
        assert _hear(engine, NOW + second, a=risk) == []
    assert _hear(engine, NOW + 600, a=0.6) == []
    assert _hear(engine, NOW + 615, a=0.6) == [Event.RELIEVED]
    assert engine._live["a"].trust.bar(THRESHOLD, NOW + 615) > 0.6  # as after any other false alarm


def test_f06_what_still_goes_wrong_is_no_time_in_which_nothing_came() -> None:
    engine = engine_of("a", "b", now=NOW)
    for second in range(900):
        for _ in range(3):
            observe(engine, "a", Outcome.OK, NOW + second, ttft_s=0.2 if second < 200 else 2.0)
        events = _hear(engine, NOW + second, a=0.99 if second > 200 else 0.0)
        assert Event.RELIEVED not in events
    assert engine._live["a"].trust.bar(THRESHOLD, NOW + 900) == THRESHOLD  # the forecast was right all the time


def test_f09_an_alarm_that_came_true_is_held_against_nobody() -> None:
    engine = engine_of("a", "b", now=NOW)
    observe(engine, "a", Outcome.OK, NOW)
    assert _hear(engine, NOW, a=0.99) == [Event.FORECAST]
    while engine.health_of("a").state is not State.EJECTED:
        observe(engine, "a", Outcome.SERVER_ERROR, NOW + 1)
    assert engine._live["a"].trust.bar(THRESHOLD, NOW + 1) == THRESHOLD  # no decision shows trust that is whole


def test_f15_who_can_no_longer_be_judged_earns_the_traffic_back_by_steps() -> None:
    """A quiet endpoint in alarm soon has too little traffic for any forecast: that it is silent is no good news."""
    engine = engine_of("a", "b", now=NOW)
    _hear(engine, NOW, a=0.99)
    events = [event for second in range(1, 20) for event in _hear(engine, NOW + second, b=0.0)]
    assert events == [Event.CALM]
    assert _admission(engine, "a") == engine.policy.failback.steps[0]


def test_f15_a_low_risk_that_rests_on_a_few_attempts_refutes_nothing() -> None:
    engine = engine_of("a", "b", now=NOW)
    _hear(engine, NOW, a=0.99)
    events = []
    for second in range(1, 20):
        if second < 10:
            observe(engine, "a", Outcome.OK, NOW + second)
        events += _hear(engine, NOW + second, a=0.0)
    assert events == [Event.CALM]
    assert engine._live["a"].trust.bar(THRESHOLD, NOW + 20) == THRESHOLD  # the next alarm here waits for the return


def _return(engine: Engine, start: float) -> None:
    """Answer every probe until all traffic is back."""
    for second in range(60):
        engine.tick(start + second)
        engine.probed(Finished("a", "p", Outcome.OK), start + second)
    assert engine.health_of("a").state is State.ACTIVE


def test_f20_an_alarm_that_an_operator_ended_costs_no_trust() -> None:
    engine = engine_of("a", "b", now=NOW)
    _hear(engine, NOW, a=0.99)
    engine.drain("a", "ada: maintenance", NOW + 1)
    engine.restore("a", "ada: done", NOW + 2)
    _return(engine, NOW + 3)
    assert _hear(engine, NOW + 70, a=0.41) == [Event.FORECAST]


def test_f06_f20_an_alarm_that_could_not_be_judged_is_judged_by_the_return_after_it() -> None:
    """Else a false alarm that comes back with the traffic makes a quiet endpoint flap for ever."""
    engine = engine_of("a", "b", now=NOW)
    _hear(engine, NOW, a=0.99)
    engine.withdraw_forecast()
    _return(engine, NOW + 1)
    assert _hear(engine, NOW + 70, a=0.7) == []
    assert _hear(engine, NOW + 71, a=0.8) == [Event.FORECAST]


def test_f09_what_goes_wrong_on_the_way_back_bears_the_alarm_out() -> None:
    engine = engine_of("a", "b", now=NOW)
    _false_alarm(engine, "a", NOW)
    _hear(engine, NOW + 40, a=0.99)
    events = [event for second in range(41, 60) for event in _hear(engine, NOW + second, b=0.0)]
    assert events == [Event.CALM]
    before = engine._live["a"].trust.bar(THRESHOLD, NOW + 60)
    while engine.health_of("a").state is not State.EJECTED:
        observe(engine, "a", Outcome.SERVER_ERROR, NOW + 60)
    assert engine._live["a"].trust.bar(THRESHOLD, NOW + 60) < before  # half of the false alarm is made up for


def test_f07_f09_nothing_leaves_for_a_place_that_is_no_better() -> None:
    assert _hear(engine_of("only", now=NOW), NOW, only=0.99) == []
    engine = engine_of("a", "b", now=NOW)
    eject(engine, "b", NOW)
    assert _hear(engine, NOW, a=0.99) == [], "b is out"
    engine = engine_of("a", "b", now=NOW)
    assert _hear(engine, NOW, a=0.99, b=0.3) == [], "b is below the threshold, but above the exit"
    assert _hear(engine, NOW + 1, a=0.99, b=0.1) == [Event.FORECAST]


def test_f09_of_two_at_risk_the_worse_one_is_left_and_the_other_stays() -> None:
    engine = engine_of("a", "b", "c", now=NOW)
    eject(engine, "c", NOW)
    _hear(engine, NOW, a=0.6, b=0.9)
    assert {engine.health_of(name).state for name in "ab"} == {State.UNKNOWN}, "each is no refuge for the other"
    bring_to_canary(engine, "c", NOW + 10)
    for second in range(11, 60):
        engine.tick(NOW + second)
        for _ in range(5):
            observe(engine, "c", Outcome.OK, NOW + second)
    assert engine.health_of("c").state is State.ACTIVE
    engine.forecast(Forecasts(NOW + 60, "hgb-7", THRESHOLD, {"a": 0.6, "b": 0.9}), NOW + 60)
    assert {engine.health_of(name).state for name in "ab"} == {State.DEGRADED}
    assert engine.health_of("b").entered_at == engine.health_of("a").entered_at == NOW + 60


def test_f17_a_limit_that_was_forecast_comes_back_once() -> None:
    """The slow start of a limit and the return of a forecast do not take turns."""
    engine = engine_of("a", "b", now=NOW)
    observe(engine, "a", Outcome.OK, NOW)
    _hear(engine, NOW, a=0.99)
    for attempt in "xy":
        engine.finished(Finished("a", attempt, Outcome.RATE_LIMITED, retry_after_s=5.0), NOW + 1)
    admitted = []
    for second in range(2, 40):
        observe(engine, "a", Outcome.OK, NOW + second)
        _hear(engine, NOW + second, a=0.0)
        admitted.append(_admission(engine, "a"))
    assert admitted == sorted(admitted)
    whole = admitted.index(1.0)
    assert max(admitted[:whole]) <= engine.policy.failback.degraded_share
    assert whole == 26, "5 s of pause and 22 s of slow start after the refusals of second 1, seen from second 2"


def test_f06_trust_is_lost_by_steps_and_comes_back_with_what_came_true_and_with_time() -> None:
    trust, bars = Trust(), []
    for _ in range(3):
        trust.refuted(NOW)
        bars.append(trust.bar(0.5, NOW))
    assert bars == pytest.approx([0.818, 0.953, 0.989], abs=1e-3)
    trust.confirmed(NOW)
    assert trust.bar(0.5, NOW) == pytest.approx(0.905, abs=1e-3)
    assert trust.bar(0.5, NOW + 7200) == pytest.approx(0.755, abs=1e-3)
    assert trust.bar(0.5, NOW + 86_400) == pytest.approx(0.5, abs=1e-3)


def test_f20_trust_never_makes_an_alarm_easier() -> None:
    trust = Trust()
    for moment in range(200):
        trust.confirmed(NOW + moment) if moment % 3 else trust.refuted(NOW + moment)
        for threshold in (0.01, 0.5, 0.99):
            assert threshold <= trust.bar(threshold, NOW + moment) < 1.0
