"""The engine: what it learns is in the snapshot before the next decision, and every change tells its cause."""

import pytest

from routing.actions import Finished
from routing.engine import Engine
from routing.errors import CatalogueError, UnknownEndpointError, UnknownModelError
from routing.forecasts import Forecasts
from routing.health import Actor, Event, State, Transition
from routing.model import Catalogue, Objective, RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import decide
from routing.policy import ForecastPolicy, Policy
from tests.routing_world import MODEL, bring_to_canary, eject, endpoint, engine_of, observe, transitions_of

NOW = 1000.0


def _chosen(engine: Engine, now: float, draw: float = 0.5) -> str:
    decision = decide(engine.snapshot, RouteRequest(MODEL), now, draw)
    return decision.chosen.facts.endpoint.id if decision.chosen else ""


def _forecast(time: float, **risks: float) -> Forecasts:
    return Forecasts(time, "hgb-7", 0.4, risks)


def test_f01_an_ejection_is_visible_to_the_very_next_decision() -> None:
    engine = engine_of("primary", "secondary", now=NOW)
    observe(engine, "primary", Outcome.OK, NOW)
    before = engine.snapshot
    assert _chosen(engine, NOW) == "primary"
    assert observe(engine, "primary", Outcome.SERVER_ERROR, NOW + 1) == []
    (transition,) = transitions_of(observe(engine, "primary", Outcome.SERVER_ERROR, NOW + 1))
    assert _chosen(engine, NOW + 1) == "secondary"
    assert (transition.from_state, transition.to_state, transition.actor) == (State.ACTIVE, State.EJECTED, Actor.REFLEX)
    assert transition.cause.metric == "failure_evidence"
    assert transition.cause.value >= transition.cause.threshold
    assert engine.snapshot.version > before.version
    assert before.candidates(MODEL)[0].facts.state is State.ACTIVE, "a snapshot in someone's hands never changes"


def test_one_success_proves_a_new_endpoint() -> None:
    engine = engine_of("a")
    assert engine.health_of("a").state is State.UNKNOWN
    (transition,) = transitions_of(observe(engine, "a", Outcome.OK, NOW))
    assert (transition.event, transition.to_state) == (Event.PROVEN, State.ACTIVE)


@pytest.mark.parametrize("outcome", [Outcome.CLIENT_ERROR, Outcome.UNSUPPORTED, Outcome.CANCELLED])
def test_what_says_nothing_of_the_endpoint_changes_nothing(outcome: Outcome) -> None:
    engine = engine_of("a", now=NOW)
    version = engine.snapshot.version
    for i in range(50):
        assert observe(engine, "a", outcome, NOW + i) == []
    assert (engine.health_of("a").state, engine.snapshot.version) == (State.UNKNOWN, version)


def _relieved(engine: Engine, start: float, seconds: int) -> list[tuple[Event, float]]:
    """Tick each second from `start`; return the events and when they came."""
    ticks = [start + second for second in range(seconds)]
    return [(t.event, t.time) for now in ticks for t in transitions_of(engine.tick(now))]


def _refuse(engine: Engine, times: int, now: float) -> list[Transition]:
    """Let the primary answer that many requests with 429 and a Retry-After of 5 s."""
    refusal = Finished("primary", "a", Outcome.RATE_LIMITED, retry_after_s=5)
    return [t for _ in range(times) for t in transitions_of(engine.finished(refusal, now))]


def test_f17_a_lone_429_among_answers_moves_no_traffic() -> None:
    engine = engine_of("primary", "secondary", now=NOW)
    observe(engine, "primary", Outcome.OK, NOW)
    assert _refuse(engine, 1, NOW) == []
    assert _chosen(engine, NOW, draw=0.999) == "primary"


def test_f17_a_limit_is_a_pause_to_the_moment_and_a_slow_start() -> None:
    engine = engine_of("primary", "secondary", now=NOW)
    observe(engine, "primary", Outcome.OK, NOW)
    (transition,) = _refuse(engine, 2, NOW)
    assert (transition.event, transition.to_state) == (Event.LIMITED, State.DEGRADED)
    assert (transition.cause.metric, transition.cause.value) == ("retry_after_s", 5.0)
    assert _chosen(engine, NOW + 4.9, draw=0.0) == "secondary"
    assert _chosen(engine, NOW + 5.0, draw=0.049) == "primary"
    assert _chosen(engine, NOW + 5.0, draw=0.051) == "secondary"
    assert _relieved(engine, NOW, 40) == [(Event.RELIEVED, NOW + 27)]


def test_f17_the_faster_the_traffic_the_more_refusals_make_a_limit() -> None:
    """Chance alone brings two 429s together once in a while on a busy endpoint."""
    engine = engine_of("primary", "secondary", now=NOW)
    for request in range(600):
        observe(engine, "primary", Outcome.OK, NOW + request / 10)
    assert _refuse(engine, 3, NOW + 60) == []
    assert [t.event for t in _refuse(engine, 1, NOW + 60)] == [Event.LIMITED]


def test_f17_lone_429s_among_failures_are_no_limit() -> None:
    """A provider that answers 503 does not limit, even if it has never served anything."""
    engine = engine_of("primary", "secondary", now=NOW)
    refusal = Finished("primary", "a", Outcome.RATE_LIMITED, retry_after_s=5)
    for second in range(20):
        for _ in range(20):
            observe(engine, "primary", Outcome.SERVER_ERROR, NOW + second)
        engine.finished(refusal, NOW + second)
    assert engine.snapshot.candidates(MODEL)[0].facts.quota_share == 1.0


def test_f09_a_forecast_degrades_and_returns_with_hysteresis() -> None:
    engine = engine_of("primary", "secondary", now=NOW)
    observe(engine, "primary", Outcome.OK, NOW)
    assert engine.forecast(_forecast(NOW, primary=0.39), NOW) == []
    (transition,) = transitions_of(engine.forecast(_forecast(NOW, primary=0.4), NOW))
    assert (transition.event, transition.actor, transition.cause.metric) == (Event.FORECAST, Actor.FORECAST, "risk")
    assert (transition.cause.value, transition.cause.threshold) == (0.4, 0.4)
    assert _chosen(engine, NOW) == "secondary"
    for second in range(1, 40):
        engine.forecast(_forecast(NOW + second, primary=0.3), NOW + second)
        assert transitions_of(engine.tick(NOW + second)) == [], "below the threshold is not yet below the exit"
    for second in range(40, 54):
        observe(engine, "primary", Outcome.OK, NOW + second)
        engine.forecast(_forecast(NOW + second, primary=0.19), NOW + second)
        assert transitions_of(engine.tick(NOW + second)) == [], "nor is a moment below the exit the end"
    engine.forecast(_forecast(NOW + 54, primary=0.19), NOW + 54)
    (relieved,) = transitions_of(engine.tick(NOW + 54))
    assert (relieved.event, relieved.to_state) == (Event.RELIEVED, State.ACTIVE)


@pytest.mark.parametrize("risk", [float("nan"), float("inf"), 1.0000001, -0.1])
def test_f20_a_risk_that_is_no_probability_breaks_neither_the_tick_nor_an_ejection(risk: float) -> None:
    engine = engine_of("a", "b", now=NOW)
    assert engine.forecast(_forecast(NOW, a=risk, b=0.1), NOW) == []
    engine.tick(NOW + 1)
    assert [c.facts.risk for c in engine.snapshot.candidates(MODEL)] == [None, 0.1], "the sound ones count"
    eject(engine, "a", NOW + 1)
    assert _chosen(engine, NOW + 1) == "b"


def test_f20_a_forecast_that_is_old_when_it_arrives_is_not_acted_on() -> None:
    engine = engine_of("a", "b", now=NOW)
    max_age_s = engine.policy.forecast.max_age_s
    assert engine.forecast(_forecast(NOW - max_age_s - 0.1, a=0.9), NOW) == []
    engine.tick(NOW)
    assert engine.snapshot.candidates(MODEL)[0].facts.risk is None
    assert transitions_of(engine.forecast(_forecast(NOW - max_age_s, a=0.9), NOW)) != []


def test_f20_forecasts_out_of_order_count_by_their_time() -> None:
    engine = engine_of("a", "b", now=NOW)
    engine.forecast(_forecast(NOW, a=0.1), NOW)
    assert engine.forecast(_forecast(NOW - 1, a=0.9), NOW + 0.1) == []
    engine.tick(NOW + 1)
    assert engine.snapshot.candidates(MODEL)[0].facts.risk == 0.1


def test_f20_a_withdrawn_forecast_is_no_reason_any_more() -> None:
    engine = engine_of("a", "b", now=NOW)
    engine.forecast(_forecast(NOW, a=0.9), NOW)
    engine.tick(NOW)
    engine.withdraw_forecast()
    assert transitions_of(engine.tick(NOW + 1)) == [], "traffic comes back in its own time"
    facts = engine.snapshot.candidates(MODEL)[0].facts
    assert (facts.risk, engine.snapshot.forecaster, engine.snapshot.threshold) == (None, "", None)
    assert [t.event for t in transitions_of(engine.tick(NOW + 31))] == [Event.CALM]


def test_f06_a_forecast_lets_a_return_settle_before_it_doubts_again() -> None:
    engine = engine_of("a", "b", now=NOW)
    back, settle_s = NOW + 10, engine.policy.forecast.settle_s
    eject(engine, "a", NOW)
    bring_to_canary(engine, "a", back)
    early, settled = back + settle_s - 0.1, back + settle_s
    assert engine.forecast(_forecast(early, a=0.9), early) == []
    assert [t.to_state for t in transitions_of(engine.forecast(_forecast(settled, a=0.9), settled))] == [State.DEGRADED]


def test_f06_doubts_that_return_are_held_twice_as_long() -> None:
    engine = engine_of("a", "b", policy=Policy(forecast=ForecastPolicy(settle_s=0.0)), now=NOW)
    hold_s = engine.policy.failback.min_hold_s
    eject(engine, "a", NOW)
    back = NOW + engine.policy.reflex.ejection_s
    bring_to_canary(engine, "a", back)
    engine.forecast(_forecast(back, a=0.9), back)
    engine.forecast(_forecast(back + 1, a=0.0), back + 1)
    assert transitions_of(engine.tick(back + 2 * hold_s - 0.1)) == []
    assert [t.event for t in transitions_of(engine.tick(back + 2 * hold_s))] == [Event.CALM]


def test_f01_the_first_doubt_in_a_limited_endpoint_is_seen_at_once_recorded_and_held() -> None:
    engine = engine_of("a", "b", policy=Policy(forecast=ForecastPolicy(settle_s=0.0)), now=NOW)
    observe(engine, "a", Outcome.OK, NOW)
    for attempt in "xy":
        engine.finished(Finished("a", attempt, Outcome.RATE_LIMITED, retry_after_s=0.0), NOW)
    assert transitions_of(engine.tick(NOW + 5)) == []
    assert engine.snapshot.candidates(MODEL)[0].facts.admission == pytest.approx(0.1)
    (doubt,) = transitions_of(engine.forecast(_forecast(NOW + 5, a=0.95), NOW + 5))
    assert (doubt.from_state, doubt.to_state, doubt.event) == (State.DEGRADED, State.DEGRADED, Event.FORECAST)
    assert (doubt.cause.metric, doubt.cause.value) == ("risk", 0.95)
    assert engine.snapshot.candidates(MODEL)[0].facts.admission == pytest.approx(0.1 * 0.1)
    assert engine.forecast(_forecast(NOW + 6, a=0.99), NOW + 6) == [], "told once"
    events = []
    for second in range(7, 60):
        observe(engine, "a", Outcome.OK, NOW + second)
        engine.forecast(_forecast(NOW + second, a=0.0), NOW + second)
        events += [(t.event, t.time) for t in transitions_of(engine.tick(NOW + second))]
    assert events == [(Event.RELIEVED, NOW + 22)], "when the slow start after the limit is over"


def test_f17_a_longer_retry_after_within_a_pause_is_honoured() -> None:
    engine = engine_of("a", "b", now=NOW)
    engine.finished(Finished("a", "x", Outcome.RATE_LIMITED, retry_after_s=1.0), NOW)
    engine.finished(Finished("a", "y", Outcome.RATE_LIMITED, retry_after_s=60.0), NOW + 0.5)
    assert _chosen(engine, NOW + 60.4, draw=0.0) == "b"
    assert _chosen(engine, NOW + 60.5, draw=0.0) == "a"


def test_f20_a_forecast_that_stopped_coming_is_no_reason_any_more() -> None:
    engine = engine_of("a", "b", now=NOW)
    engine.forecast(_forecast(NOW, a=0.9), NOW)
    engine.tick(NOW + 1)
    assert engine.snapshot.candidates(MODEL)[0].facts.risk == 0.9
    engine.tick(NOW + engine.policy.forecast.max_age_s + 0.1)
    facts = engine.snapshot.candidates(MODEL)[0].facts
    assert (facts.risk, engine.snapshot.forecaster) == (None, "")
    assert [t.event for t in transitions_of(engine.tick(NOW + 40))] == [Event.CALM]


def test_f09_the_policy_s_threshold_overrides_the_model_s() -> None:
    policy = Policy(forecast=ForecastPolicy(threshold=0.8))
    engine = engine_of("a", policy=policy, now=NOW)
    assert engine.forecast(_forecast(NOW, a=0.79), NOW) == []
    assert engine.thresholds()["forecast.threshold"] == 0.8
    assert engine_of("a").thresholds()["forecast.threshold"] is None


def test_a_forecast_of_an_endpoint_that_left_the_catalogue_is_ignored() -> None:
    assert engine_of("a").forecast(_forecast(0.0, gone=0.99), 0.0) == []


def test_f07_panic_in_the_second_of_an_ejection_already_knows_who_fails_least() -> None:
    engine = engine_of("a", "b", now=NOW)
    for _ in range(50):
        observe(engine, "b", Outcome.OK, NOW)
    eject(engine, "a", NOW)
    for _ in range(3):
        observe(engine, "b", Outcome.SERVER_ERROR, NOW)
    assert {engine.health_of(name).state for name in "ab"} == {State.EJECTED}
    assert _chosen(engine, NOW) == "b"


def test_f07_a_single_endpoint_stays_in_use() -> None:
    engine = engine_of("only", now=NOW)
    eject(engine, "only", NOW)
    assert _chosen(engine, NOW) == "only"


def test_one_model_s_trouble_leaves_the_others_alone() -> None:
    catalogue = Catalogue.of([endpoint("a"), endpoint("b", model="other")])
    assert [e.id for e in catalogue.endpoints_for("other")] == ["b"]
    with pytest.raises(UnknownModelError, match="known models: openai/gpt-4, other"):
        catalogue.endpoints_for("third")
    with pytest.raises(CatalogueError, match="'a' is declared twice"):
        Catalogue.of([endpoint("a"), endpoint("a")])


def _whole_replies(engine: Engine, replies: int) -> None:
    """Ten minutes of streams, and `replies` whole replies of 8 s among them."""
    for i in range(600):
        observe(engine, "a", Outcome.OK, NOW + i, ttft_s=0.3)
        if i < replies:
            engine.started("a", f"whole-{i}", NOW + i, streamed=False)
            engine.finished(Finished("a", f"whole-{i}", Outcome.OK, reply_s=8.0), NOW + i + 0.5)


def test_f12_an_endpoint_that_was_always_outrun_hangs_by_its_own_standards_before_it_ever_answered() -> None:
    """How long it had waited when a hedge answered first is all that is known of it."""
    engine, now = engine_of("a", "b", now=1000.0), 1000.0
    for _ in range(40):
        now += 1.0
        engine.started("a", "outrun", now)
        engine.finished(Finished("a", "outrun", Outcome.CANCELLED, ttft_s=0.2), now)
    for attempt in "xyz":
        engine.started("a", attempt, now)
    events = [t for i in range(20) for t in transitions_of(engine.tick(now + i / 10))]
    assert [(t.from_state, t.event) for t in events] == [(State.UNKNOWN, Event.SLOW)]


def test_f06_whole_replies_beside_streams_are_no_hang() -> None:
    engine = engine_of("a", "b", now=NOW)
    _whole_replies(engine, 600)
    for attempt in ("r1", "r2"):
        engine.started("a", attempt, NOW + 600, streamed=False)
    assert [t for s in range(601, 632) for t in transitions_of(engine.tick(NOW + s))] == []
    found = [t for s in range(632, 640) for t in transitions_of(engine.tick(NOW + s))]
    assert [(t.event, t.cause.metric) for t in found] == [(Event.SLOW, "waiting_s")]


def test_f06_whole_replies_of_an_endpoint_that_never_served_are_no_hang() -> None:
    engine = engine_of("a", "b", now=NOW)
    for attempt in ("r1", "r2"):
        engine.started("a", attempt, NOW, streamed=False)
    assert [t for s in range(1, 120) for t in transitions_of(engine.tick(NOW + s))] == []


def test_f06_one_quick_whole_reply_is_no_normal_to_be_slower_than() -> None:
    engine = engine_of("a", "b", now=NOW)
    engine.finished(Finished("a", "quick", Outcome.OK, reply_s=0.2), NOW)
    for i in range(2, 600):
        engine.finished(Finished("a", "stream", Outcome.OK, ttft_s=0.3), NOW + i)
    for _ in range(20):
        assert transitions_of(engine.finished(Finished("a", "usual", Outcome.OK, reply_s=4.0), NOW + 620)) == []


@pytest.mark.parametrize(
    "result",
    [
        Finished("a", "x", Outcome.OK, ttft_s=float("nan")),
        Finished("a", "x", Outcome.OK, reply_s=float("inf")),
        Finished("a", "x", Outcome.OK, generation_s=float("nan")),
        Finished("a", "x", Outcome.RATE_LIMITED, retry_after_s=float("nan")),
        Finished("a", "x", Outcome.RATE_LIMITED, retry_after_s=-1.0),
    ],
)
def test_a_report_that_is_not_finite_is_refused_before_anything_changes(result: Finished) -> None:
    engine, untouched = engine_of("a", now=NOW), engine_of("a", now=NOW)
    for each in (engine, untouched):
        each.started("a", "x", NOW)
    with pytest.raises(ValueError, match="expected finite"):
        engine.finished(result, NOW + 1)
    assert engine.health_of("a") == untouched.health_of("a")
    assert engine.snapshot == untouched.snapshot
    assert engine.window_of("a").in_flight == 1
    assert engine.window_of("a").sums(NOW + 1, 60).judged == 0


def test_an_unknown_endpoint_is_named() -> None:
    engine = engine_of("a")
    calls = (
        lambda: engine.started("gone", "x", NOW),
        lambda: engine.first_byte("gone", "x", NOW),
        lambda: engine.finished(Finished("gone", "x", Outcome.OK), NOW),
        lambda: engine.probed(Finished("gone", "x", Outcome.OK), NOW),
        lambda: engine.health_of("gone"),
        lambda: engine.window_of("gone"),
        lambda: engine.drain("gone", "kim", NOW),
        lambda: engine.restore("gone", "kim", NOW),
        lambda: engine.blame_after_s("gone", NOW, streamed=True),
        lambda: engine.catalogue.endpoint("gone"),
    )
    for call in calls:
        with pytest.raises(UnknownEndpointError, match="unknown endpoint 'gone'"):
            call()


@pytest.mark.parametrize("objective", Objective)
def test_f21_a_switch_by_hand_holds_for_every_objective_until_it_is_ended(objective: Objective) -> None:
    engine = engine_of("first", "second", "third", now=NOW)

    def chosen(now: float) -> str:
        request = RouteRequest(MODEL, objective=objective, preferred_provider="first")
        decision = decide(engine.snapshot, request, now, 0.5)
        return decision.chosen.facts.endpoint.id if decision.chosen else ""

    assert chosen(NOW) == "first"
    engine.switch(MODEL, "third", NOW)
    assert chosen(NOW) == "third", "the very next decision knows"
    engine.tick(NOW + 1)
    assert chosen(NOW + 1) == "third", "and ticks keep it"
    eject(engine, "third", NOW + 2)
    assert chosen(NOW + 2) == "first", "a switch does not send requests to what is out of service"
    engine.switch(MODEL, "", NOW + 3)
    bring_to_canary(engine, "third", NOW + 10)
    assert chosen(NOW + 10) == "first"


def test_f21_a_switch_to_what_does_not_serve_the_model_is_refused() -> None:
    engine = engine_of("first", "second", now=NOW)
    with pytest.raises(CatalogueError, match="'other' does not serve 'openai/gpt-4'; these do: first, second"):
        engine.switch(MODEL, "other", NOW)
    with pytest.raises(UnknownModelError):
        engine.switch("none", "first", NOW)


def test_a_forecast_moves_as_much_as_it_is_sure_of_and_no_more_than_the_policy_allows() -> None:
    engine = engine_of("first", "second", now=NOW)

    def say(risk: float, kept: float | None, now: float) -> float:
        shares = {} if kept is None else {"first": kept}
        engine.forecast(Forecasts(now, "hgb-7", 0.4, {"first": risk}, shares), now)
        engine.tick(now)
        return engine.snapshot.candidates(MODEL)[0].facts.admission

    assert say(0.3, 0.9, NOW) == 1.0, "below the threshold nothing moves"
    assert say(0.5, 0.7, NOW + 1) == 0.7
    assert say(0.9, 0.0, NOW + 2) == engine.policy.failback.degraded_share
    assert say(0.5, 0.6, NOW + 3) == 0.6
    assert say(0.5, None, NOW + 4) == engine.policy.failback.degraded_share


def test_a_share_that_is_none_is_ignored() -> None:
    engine = engine_of("first", "second", now=NOW)
    engine.forecast(Forecasts(NOW, "hgb-7", 0.4, {"first": 0.5}, {"first": float("nan")}), NOW)
    assert engine.snapshot.candidates(MODEL)[0].facts.admission == engine.policy.failback.degraded_share
