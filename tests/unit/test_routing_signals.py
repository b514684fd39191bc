"""Each signal moves the engine by its own evidence, and one attempt never counts twice."""

import pytest

from routing.actions import Finished
from routing.engine import Engine
from routing.health import Event, State
from routing.outcomes import Outcome
from routing.policy import Policy, ReflexPolicy
from tests.routing_world import bring_to_canary, eject, engine_of, observe, transitions_of

NOW = 1000.0
# Ten minutes of first bytes after 0.5 s: an attempt hangs after 2 s and counts as failed after 4 s.
KNOWN = NOW + 600


def _known() -> Engine:
    engine = engine_of("a", "b", now=NOW)
    for i in range(600):
        observe(engine, "a", Outcome.OK, NOW + i, ttft_s=0.5)
    engine.tick(KNOWN)
    return engine


def _evidence(engine: Engine, name: str = "a") -> tuple[float, float]:
    live = engine._live[name]
    return live.detector.evidence, live.quality.evidence


def _send(engine: Engine, count: int, now: float) -> list[str]:
    names = [f"{now}-{i}" for i in range(count)]
    for name in names:
        engine.started("a", name, now)
    return names


def test_f12_a_hang_degrades_first_and_ejects_at_twice_the_wait_without_any_outcome() -> None:
    engine = _known()
    _send(engine, 8, KNOWN)
    found = [t for i in range(60) for t in transitions_of(engine.tick(KNOWN + i / 10))]
    assert [(t.event, t.cause.metric, t.to_state) for t in found] == [
        (Event.SLOW, "waiting_s", State.DEGRADED),
        (Event.BREACH, "failure_evidence", State.EJECTED),
    ]
    assert [t.time - KNOWN for t in found] == pytest.approx([2.1, 4.1], abs=0.11)


@pytest.mark.parametrize("ending", [Outcome.TIMEOUT, Outcome.SERVER_ERROR, Outcome.TRUNCATED, Outcome.CANCELLED])
def test_f12_what_counted_as_failed_for_hanging_does_not_count_again_when_it_ends(ending: Outcome) -> None:
    engine = _known()
    (attempt, other) = _send(engine, 2, KNOWN)
    engine.tick(KNOWN + 4.5)
    counted = _evidence(engine)
    assert counted[0] > 0
    engine.finished(Finished("a", attempt, ending), KNOWN + 20)
    assert _evidence(engine) == counted
    engine.first_byte("a", other, KNOWN + 20)
    engine.finished(Finished("a", other, Outcome.STALLED), KNOWN + 30)
    assert _evidence(engine) == counted, "not even when its first byte came after all"


def test_f06_what_succeeds_after_all_takes_its_evidence_back() -> None:
    engine = _known()
    (attempt, other) = _send(engine, 2, KNOWN)
    engine.tick(KNOWN + 4.5)
    both, _ = _evidence(engine)
    engine.finished(Finished("a", attempt, Outcome.OK, ttft_s=5.0), KNOWN + 5)
    one, _ = _evidence(engine)
    assert one < both / 2
    engine.finished(Finished("a", other, Outcome.OK, ttft_s=5.5), KNOWN + 5.5)
    assert _evidence(engine) == (0.0, 0.0)


def test_f06_what_hangs_from_before_a_return_does_not_count_against_it() -> None:
    engine = _known()
    _send(engine, 8, KNOWN)
    eject(engine, "a", KNOWN + 3)
    back = engine.health_of("a").held_until
    bring_to_canary(engine, "a", back)
    assert transitions_of(engine.tick(back + 1)) == []
    assert _evidence(engine) == (0.0, 0.0)
    assert len(engine.window_of("a").waiting(streamed=True)) == 8, "they hang on"


@pytest.mark.parametrize("outcome", [Outcome.TRUNCATED, Outcome.MALFORMED, Outcome.EMPTY, Outcome.REFUSED_FORMAT])
def test_f01_poor_answers_and_failures_never_add_up(outcome: Outcome) -> None:
    """Each signal one short of its threshold, and the endpoint stays."""
    engine = _known()
    for i in range(3):
        assert observe(engine, "a", outcome, KNOWN + i / 10) == []
        assert observe(engine, "a", Outcome.SERVER_ERROR, KNOWN + i / 10) == []
    failing, poor = _evidence(engine)
    assert failing == poor > 0
    (transition,) = transitions_of(observe(engine, "a", outcome, KNOWN + 1))
    assert (transition.to_state, transition.cause.metric) == (State.EJECTED, "quality_evidence")


def test_f15_a_poor_answer_counts_against_a_step_of_the_return() -> None:
    engine = _known()
    eject(engine, "a", KNOWN + 3)
    back = engine.health_of("a").held_until
    bring_to_canary(engine, "a", back)
    observe(engine, "a", Outcome.EMPTY, back + 1)
    assert (engine.health_of("a").step_successes, engine.health_of("a").step_failures) == (0, 1)


def test_f08_a_probe_with_a_poor_answer_is_none_that_passed() -> None:
    engine = _known()
    eject(engine, "a", KNOWN + 3)
    engine.tick(engine.health_of("a").held_until)
    for outcome in (Outcome.OK, Outcome.EMPTY, Outcome.OK):
        engine.probed(Finished("a", "p", outcome), engine.health_of("a").held_until + 1)
    assert (engine.health_of("a").state, engine.health_of("a").probes_passed) == (State.PROBING, 1)


def test_other_thresholds_reach_both_detectors() -> None:
    engine = _known()
    engine.adopt(Policy(reflex=ReflexPolicy(failing_rate=0.9)), KNOWN)
    engine.tick(KNOWN + 1)
    observe(engine, "a", Outcome.SERVER_ERROR, KNOWN + 1)
    observe(engine, "a", Outcome.MALFORMED, KNOWN + 1)
    failing, poor = _evidence(engine)
    assert failing == poor == pytest.approx(3.8067, abs=1e-3)


def test_f06_streams_from_before_a_return_have_no_pace() -> None:
    engine = engine_of("a", "b", now=NOW)
    for i in range(600):
        engine.started("a", "x", NOW + i)
        engine.finished(Finished("a", "x", Outcome.OK, ttft_s=0.1, output_tokens=100, generation_s=2.0), NOW + i)
    old = _send(engine, 8, KNOWN - 40)
    eject(engine, "a", KNOWN + 3)
    back = engine.health_of("a").held_until
    bring_to_canary(engine, "a", back)
    for attempt in old:
        ended = Finished("a", attempt, Outcome.OK, ttft_s=0.1, output_tokens=100, generation_s=50.0)
        assert transitions_of(engine.finished(ended, back + 3)) == []
    assert engine.health_of("a").state is State.CANARY
    for i in range(8):
        engine.started("a", "new", back + 3)
        ended = Finished("a", "new", Outcome.OK, ttft_s=0.1, output_tokens=100, generation_s=50.0)
        engine.finished(ended, back + 3 + i / 10)
    assert engine.health_of("a").state is State.DEGRADED
