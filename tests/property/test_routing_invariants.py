"""Whatever happens in whatever order, while time moves forward: the invariants of the core hold after every step."""

from math import isfinite

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.engine import Engine, Finished, Forecasts
from routing.health import TABLE, State
from routing.model import Objective, RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import decide
from routing.snapshot import Snapshot
from tests.routing_world import MODEL, engine_of, transitions_of

NAMES = ("a", "b", "c")
FRACTION = st.floats(0.0, 1.0)
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
RISKS = st.dictionaries(st.sampled_from([*NAMES, "gone"]), FRACTION)
STEP = st.one_of(
    st.tuples(st.just("started"), st.sampled_from(NAMES)),
    st.tuples(st.just("finished"), FINISHED),
    st.tuples(st.just("probed"), FINISHED),
    st.tuples(st.just("forecast"), RISKS),
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


def _do(engine: Engine, kind: str, value: object, now: float) -> None:
    before = {name: engine.health_of(name).state for name in NAMES}
    match kind, value:
        case "started", str(name):
            engine.started(name, "x", now)
            actions = []
        case "finished", Finished() as result:
            actions = engine.finished(result, now)
        case "probed", Finished() as result:
            actions = engine.probed(result, now)
        case "forecast", dict(risks):
            actions = engine.forecast(Forecasts(now, "m", 0.5, risks), now)
        case _:
            actions = engine.tick(now)
    for transition in transitions_of(actions):
        assert before[transition.endpoint_id] is transition.from_state, "every change of state is told"
        assert TABLE[transition.from_state, transition.event] is transition.to_state
        assert isfinite(transition.cause.value)
        before[transition.endpoint_id] = transition.to_state
    assert before == {name: engine.health_of(name).state for name in NAMES}, "no change of state goes untold"


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
        assert decision.retry_after_s is None or decision.retry_after_s > 0
        assert all(c.exclusion for c in decision.considered)
        return
    facts = decision.chosen.facts
    assert abs(sum(c.share for c in decision.considered) - 1.0) < 1e-9
    assert facts.endpoint.id not in request.excluded
    assert facts.blocked_until <= now + later
    assert decision.panic or facts.state not in (State.EJECTED, State.PROBING)


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
            window.oldest_waiting_s(now),
            window.hanging(now, 1.0),
            [window.sums(now, span).failures for span in (1, 15, 60, 300)],
            window.hour(now).judged,
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
        parts = (window._totals, window._seconds._rows, window._minutes._rows, window._latency._counts)
        total += sum(part.buffer_info()[1] * part.itemsize for part in parts)
    return total


@settings(max_examples=50, deadline=None)
@given(STEPS)
def test_the_memory_of_an_endpoint_is_bounded(steps: list[tuple[float, int, tuple[str, object]]]) -> None:
    fresh = _bytes(engine_of(*NAMES))
    engine, _ = _run(steps)
    assert _bytes(engine) == fresh <= len(NAMES) * 56_000
    for name in NAMES:
        assert engine.window_of(name).in_flight <= sum(times for _, times, (kind, _) in steps if kind == "started")
