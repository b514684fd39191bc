"""Whatever happens in whatever order, while time moves forward: the invariants of the core hold after every step."""

from dataclasses import replace
from math import isfinite

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.actions import Action, Finished, Probe
from routing.attempts import RequestBudget, first_byte_timeout_s, refusal_to_retry
from routing.engine import Engine
from routing.failback import FAINT_S, RETURN_S
from routing.forecasts import Forecasts
from routing.health import TABLE, Event, State, Transition
from routing.model import Objective, RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import Decision, decide
from routing.policy import AttemptPolicy, FailbackKind, FailbackPolicy, Policy
from routing.snapshot import Snapshot
from tests.routing_world import MODEL, engine_of, transitions_of

NAMES = ("a", "b", "c")
RISK = st.one_of(st.floats(0.0, 1.0), st.sampled_from([float("nan"), float("inf"), -0.5, 1.5]))
DURATION = st.floats(0.0, 700.0)
GAP = st.one_of(st.floats(0.0, 2.0), st.floats(2.0, 90.0), st.sampled_from([0.0, 300.0, 4000.0]))
FINISHED = st.builds(
    Finished,
    st.sampled_from(NAMES),
    st.sampled_from(["x", "y", "z"]),
    st.sampled_from(Outcome),
    ttft_s=st.one_of(st.none(), DURATION),
    reply_s=st.one_of(st.none(), DURATION),
    output_tokens=st.integers(0, 10_000),
    generation_s=DURATION,
    retry_after_s=st.one_of(st.none(), DURATION),
)
RISKS = st.dictionaries(st.sampled_from([*NAMES, "gone"]), RISK)
STEP = st.one_of(
    st.tuples(st.just("started"), st.tuples(st.sampled_from(NAMES), st.sampled_from(["x", "y"]), st.booleans())),
    st.tuples(st.just("first_byte"), st.tuples(st.sampled_from(NAMES), st.sampled_from(["x", "y", "gone"]))),
    st.tuples(st.just("finished"), FINISHED),
    st.tuples(st.just("probed"), FINISHED),
    st.tuples(st.just("forecast"), st.tuples(st.floats(0.0, 10.0), RISKS)),
    st.tuples(st.just("withdraw"), st.none()),
    st.tuples(st.just("drain"), st.sampled_from(NAMES)),
    st.tuples(st.just("restore"), st.sampled_from(NAMES)),
    st.tuples(st.just("tick"), st.none()),
)
STEPS = st.lists(st.tuples(GAP, st.integers(1, 6), STEP), max_size=40)
REQUEST = st.builds(
    RouteRequest,
    st.just(MODEL),
    objective=st.sampled_from(Objective),
    preferred_provider=st.sampled_from(["", *NAMES]),
    affine_endpoint=st.sampled_from(["", *NAMES]),
    excluded=st.frozensets(st.sampled_from(NAMES)),
)


def _do(engine: Engine, kind: str, value: object, now: float) -> list[Transition]:
    before = {name: engine.health_of(name).state for name in NAMES}
    actions: list[Action] = []
    match kind, value:
        case "started", (str(name), str(attempt), bool(streamed)):
            engine.started(name, attempt, now, streamed=streamed)
        case "first_byte", (str(name), str(attempt)):
            engine.first_byte(name, attempt, now)
        case "finished", Finished() as result:
            actions = engine.finished(result, now)
        case "probed", Finished() as result:
            actions = engine.probed(result, now)
        case "forecast", (float(age_s), dict(risks)):
            actions = engine.forecast(Forecasts(now - age_s, "m", 0.5, risks), now)
        case "withdraw", _:
            engine.withdraw_forecast()
        case "drain", str(name):
            actions = engine.drain(name, "kim", now)
        case "restore", str(name):
            actions = engine.restore(name, "kim", now)
        case _:
            actions = engine.tick(now)
    transitions = transitions_of(actions)
    for transition in transitions:
        assert before[transition.endpoint_id] is transition.from_state, "every change of state is told"
        assert TABLE[transition.from_state, transition.event] is transition.to_state
        assert isfinite(transition.cause.value)
        before[transition.endpoint_id] = transition.to_state
    assert before == {name: engine.health_of(name).state for name in NAMES}, "no change of state goes untold"
    return transitions


def _run(steps: list[tuple[float, int, tuple[str, object]]]) -> tuple[Engine, float]:
    engine, now = engine_of(*NAMES, now=0.0), 0.0
    for gap, times, (kind, value) in steps:
        now += gap
        for _ in range(times):
            _do(engine, kind, value, now)
        _check_snapshot(engine.snapshot)
    return engine, now


def _check_snapshot(snapshot: Snapshot) -> None:
    for candidates in snapshot.rankings[MODEL].values():
        assert {c.facts.endpoint.id for c in candidates} == set(NAMES)
    for candidate in snapshot.candidates(MODEL):
        facts = candidate.facts
        assert 0.0 <= facts.admission <= 1.0
        assert 0.0 <= facts.error_rate <= 1.0
        assert facts.in_flight >= 0
        assert isfinite(facts.latency_ratio)
        assert isfinite(facts.blocked_until)
        assert facts.latency_s is None or facts.latency_s > 0
        assert all(0.0 <= value <= 1.0 for value in (candidate.score, *candidate.contributions.values()))


@settings(max_examples=200, deadline=None)
@given(STEPS, REQUEST, st.floats(0.0, 1.0, exclude_max=True), st.floats(0.0, 60.0))
def test_every_decision_is_sound_and_can_be_repeated(
    steps: list[tuple[float, int, tuple[str, object]]], request: RouteRequest, draw: float, later: float
) -> None:
    engine, now = _run(steps)
    snapshot = engine.snapshot
    decision = decide(snapshot, request, now + later, draw)
    assert decide(snapshot, request, now + later, draw) == decision
    assert {c.candidate.facts.endpoint.id for c in decision.considered} == set(NAMES)
    for considered in decision.considered:
        assert 0.0 <= considered.share <= 1.0
        assert bool(considered.exclusion) == bool(considered.excluded_by)
        assert not (considered.exclusion and considered.share)
    if decision.chosen is None:
        assert decision.retry_after_s is None or decision.retry_after_s >= 0
        assert all(c.exclusion for c in decision.considered)
        return
    facts = decision.chosen.facts
    assert abs(sum(c.share for c in decision.considered) - 1.0) < 1e-9
    assert facts.endpoint.id not in request.excluded
    assert facts.blocked_until <= now + later
    assert decision.panic or facts.state not in (State.EJECTED, State.PROBING)
    assert facts.state is not State.DRAINING


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_f15_f20_whatever_happened_who_serves_well_gets_all_traffic_back(
    steps: list[tuple[float, int, tuple[str, object]]],
) -> None:
    """Within twenty minutes: ten of a Retry-After at the most, then the longest pause between probes, and the plan."""
    engine, now = _run(steps)
    for name in NAMES:
        engine.restore(name, "kim", now)
        for attempt in ("x", "y", "z"):
            engine.finished(Finished(name, attempt, Outcome.CANCELLED), now)
    for _ in range(600):
        now += 2.0
        for name in NAMES:
            if engine.health_of(name).state not in (State.EJECTED, State.PROBING):
                engine.finished(Finished(name, "good", Outcome.OK, ttft_s=0.2), now)
        for action in engine.tick(now):
            if isinstance(action, Probe):
                engine.probed(Finished(action.endpoint.id, "probe", Outcome.OK), now)
    assert {name: engine.health_of(name).state for name in NAMES} == dict.fromkeys(NAMES, State.ACTIVE)
    assert all(c.facts.admission == 1.0 for c in engine.snapshot.candidates(MODEL))


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_the_same_observations_make_the_same_engine(steps: list[tuple[float, int, tuple[str, object]]]) -> None:
    (one, _), (other, _) = _run(steps), _run(steps)
    assert one.snapshot == other.snapshot
    assert [one.health_of(name) for name in NAMES] == [other.health_of(name) for name in NAMES]


def _reads(engine: Engine, now: float) -> list[object]:
    found: list[object] = []
    for name in NAMES:
        window = engine.window_of(name)
        found += [
            window.latency_quantile(0.5, now),
            window.latency_shift(now, 15),
            window.pace_shift(now, 15),
            list(window.streaming()),
            [list(window.waiting(streamed=streamed)) for streamed in (True, False)],
            window.oldest_s(now),
            [window.sums(now, span).failures for span in (1, 15, 60, 300)],
            window.columns(now, (15, 60)).tolist(),
            window.baseline(now).latency_samples,
        ]
    return found


@settings(max_examples=100, deadline=None)
@given(STEPS, st.floats(0.0, 10_000.0))
def test_reads_change_nothing(steps: list[tuple[float, int, tuple[str, object]]], later: float) -> None:
    engine, now = _run(steps)
    before = _reads(engine, now)
    _reads(engine, now + later)
    decide(engine.snapshot, RouteRequest(MODEL), now + later, 0.5)
    assert _reads(engine, now) == before


def _bytes(engine: Engine) -> int:
    total = 0
    for name in NAMES:
        window = engine.window_of(name)
        sketches = (window._ttft.quantiles, window._reply.quantiles)
        totals = (window._totals, window._seconds._rows, window._minutes._rows)
        total += sum(part.buffer_info()[1] * part.itemsize for part in totals)
        total += sum(part.buffer_info()[1] * part.itemsize for s in sketches for part in (*s._slots, s._merged))
    return total


@settings(max_examples=50, deadline=None)
@given(STEPS)
def test_the_memory_of_an_endpoint_is_bounded(steps: list[tuple[float, int, tuple[str, object]]]) -> None:
    fresh = _bytes(engine_of(*NAMES))
    engine, _ = _run(steps)
    assert _bytes(engine) == fresh <= len(NAMES) * 90 * 1024
    for name in NAMES:
        window, started = engine.window_of(name), sum(times for _, times, (kind, _) in steps if kind == "started")
        waiting = len(window.waiting(streamed=True)) + len(window.waiting(streamed=False))
        assert waiting <= window.in_flight <= started
        assert len(window.streaming()) + len(window._flight._lost) <= 2 * window.in_flight


DECISION = st.tuples(st.floats(0.0, 30.0), REQUEST, st.floats(0.0, 1.0, exclude_max=True))


@settings(max_examples=150, deadline=None)
@given(STEPS, st.lists(DECISION, min_size=1, max_size=12))
def test_a_decision_computed_again_from_its_record_is_the_same_through_the_memory_of_plans(
    steps: list[tuple[float, int, tuple[str, object]]], requests: list[tuple[float, RouteRequest, float]]
) -> None:
    engine, now = _run(steps)
    snapshot = engine.snapshot
    made = []
    for gap_s, request, draw in requests:
        now += gap_s
        made.append(decide(snapshot, request, now, draw))
    for decision in made:
        replayed = decide(replace(snapshot, plans={}), decision.request, decision.time, decision.draw)
        assert _outcome(replayed) == _outcome(decision)


def _outcome(decision: Decision) -> tuple[object, ...]:
    """All of a decision but the wording of its exclusions, which counts the seconds from the plan's making."""
    considered = [(c.candidate, c.share, c.excluded_by) for c in decision.considered]
    return (decision.chosen, decision.propensity, decision.panic, decision.retry_after_s, considered)


TROUBLE = st.one_of(
    st.sampled_from([Outcome.OK, Outcome.SERVER_ERROR, Outcome.CONNECT_ERROR, Outcome.TIMEOUT]),
    st.sampled_from(["slow", "risk", "faint", "tick"]),
)
HISTORY = st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0, 4.0]), st.integers(1, 8), TROUBLE), max_size=120)


@settings(max_examples=150, deadline=None)
@given(HISTORY, st.sampled_from(FailbackKind))
def test_f06_no_endpoint_switches_back_before_its_hold_and_holds_grow(
    history: list[tuple[float, int, Outcome | str]], kind: FailbackKind
) -> None:
    """What left stays away for its hold, twice as long for each relapse, of which a forecast is none; and every full
    return took its steps. What a forecast alone took, with nothing gone wrong, stays away as long as forecasts have to
    be silent: less where the risk is faint, and only where all comes back at once.
    """
    policy = Policy(failback=FailbackPolicy(kind, ramp_step=0.3))
    engine, now = engine_of("a", "b", policy=policy), 10_000.0
    left: list[Transition] = []
    for gap_s, times, what in history:
        for _ in range(times):
            now += gap_s
            for transition in _trouble(engine, what, now):
                _check_hold(transition, left, policy)


def _trouble(engine: Engine, what: Outcome | str, now: float) -> list[Transition]:
    actions = []
    match what:
        case "risk":
            actions += engine.forecast(Forecasts(now, "m", 0.5, {"a": 0.9}), now)
        case "faint":
            actions += engine.forecast(Forecasts(now, "m", 0.5, {"a": 0.01}), now)
            actions += engine.finished(Finished("a", "x", Outcome.OK, ttft_s=0.2), now)
        case "slow":
            actions += engine.finished(Finished("a", "x", Outcome.OK, ttft_s=9.0), now)
        case Outcome() as outcome:
            ttft_s = 0.2 if outcome is Outcome.OK else None
            actions += engine.finished(Finished("a", "x", outcome, ttft_s=ttft_s), now)
    actions += engine.tick(now)
    if what is Outcome.OK:
        for action in [a for a in actions if isinstance(a, Probe)]:
            actions += engine.probed(Finished(action.endpoint.id, "p", Outcome.OK), now)
    return [t for t in transitions_of(actions) if t.endpoint_id == "a"]


def _check_hold(transition: Transition, left: list[Transition], policy: Policy) -> None:
    reflex, failback = policy.reflex, policy.failback
    match transition.to_state:
        case State.EJECTED | State.DEGRADED:
            left.append(transition)
        case State.PROBING:
            assert transition.time - left[-1].time >= reflex.ejection_s
        case State.CANARY if transition.event is Event.CALM:
            *earlier, last = left
            relapses = sum(
                transition.time - t.time < reflex.forgive_s for t in earlier if t.event is not Event.FORECAST
            )
            was_expected = last.event is Event.FORECAST and last.from_state is not State.CANARY
            hold_s = RETURN_S if was_expected else min(failback.min_hold_s * 2**relapses, failback.max_hold_s)
            assert transition.time - last.time >= hold_s
        case State.ACTIVE if transition.event is Event.RELIEVED:
            assert left[-1].event is Event.FORECAST
            assert transition.time - left[-1].time >= FAINT_S
        case State.ACTIVE if left:
            assert transition.time - left[-1].time >= reflex.ejection_s + len(failback.shares()) * failback.step_s
        case _:
            pass


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans(), st.sampled_from(Outcome)), max_size=8),
    st.floats(0.01, 400.0),
    st.integers(1, 6),
)
def test_no_attempt_begins_or_lasts_beyond_the_deadline(
    walk: list[tuple[float, bool, Outcome]], deadline_s: float, max_attempts: int
) -> None:
    """Each attempt uses some share of the wait it was given; the next may begin only when nothing refuses it."""
    policy, now = AttemptPolicy(max_attempts=max_attempts), 1000.0
    budget = RequestBudget(now + deadline_s, idempotent=True)
    for made, (used, streamed, outcome) in enumerate(walk, start=1):
        assert now < budget.deadline
        limit_s = first_byte_timeout_s(budget, policy, now, streamed=streamed, others_left=made < max_attempts)
        assert 0 < limit_s <= budget.deadline - now + 1e-9
        now += used * limit_s
        if refusal_to_retry(outcome, made, False, budget, policy, now):
            break
    else:
        assert len(walk) < max_attempts
