"""Signals kept apart, as stories on a virtual clock: crawls, hangs and poor answers, and the busy endpoints that only
look like one.

Proves F-01 (detection by each kind of evidence), F-06 (no flapping), F-12 (before the timeout) for the core.
"""

import random

import pytest

from routing.health import Event, State, Transition
from routing.model import RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import decide
from tests.routing_world import (
    MODEL,
    Reply,
    Script,
    World,
    always,
    during,
    engine_of,
    observe,
    steady,
    transitions_of,
)


def _speaking(pace: float = 1.0, sigma: float = 0.6) -> Script:
    """Answer in about 200 ms, then stream about 200 tokens, 50 a second at a pace of 1."""

    def script(now: float, rng: random.Random) -> Reply:
        tokens = round(rng.lognormvariate(5.3, sigma))
        generation_s = tokens / 50 / pace * rng.lognormvariate(0, 0.2)
        return Reply(steady(now, rng).ttft_s, output_tokens=tokens, generation_s=generation_s)

    return script


def _either(share: float, one: Script, other: Script) -> Script:
    return lambda now, rng: (one if rng.random() < share else other)(now, rng)


def _first(world: World, after: float) -> Transition:
    return next(t for t in world.transitions if t.endpoint_id == "primary" and t.time > after)


def _diverted(world: World, start: float, end: float) -> float:
    first = [d for d in world.decisions if start <= d.time < end and not d.request.excluded]
    return sum(d.chosen is None or d.chosen.facts.endpoint.id != "primary" for d in first) / len(first)


@pytest.mark.parametrize("per_s", [1, 10])
def test_f01_a_crawl_shows_before_its_streams_end(per_s: int) -> None:
    """At 3 % of the usual speed a stream of 4 s takes two minutes; the caller's patience would end before."""
    world = World({"primary": during(300, 420, _speaking(0.03), _speaking()), "secondary": _speaking()})
    world.run(400, every_s=1 / per_s)
    slow = _first(world, 300)
    assert (slow.event, slow.to_state, slow.cause.metric) == (Event.SLOW, State.DEGRADED, "streaming_s")
    assert slow.cause.value > slow.cause.threshold
    assert slow.time < 345, "three times the 95th percentile of the usual, and no minute more"
    assert _diverted(world, slow.time + 1, 400) > 0.75


def test_f01_a_mild_crawl_shows_in_the_pace_of_what_ends() -> None:
    world = World({"primary": during(300, 420, _speaking(0.25), _speaking()), "secondary": _speaking()})
    world.run(400, every_s=0.2)
    slow = _first(world, 300)
    assert (slow.event, slow.cause.metric, slow.cause.threshold) == (Event.SLOW, "pace_ratio", 3.0)
    assert 3.0 <= slow.cause.value < 5.0
    assert slow.time < 330


def test_f06_traffic_comes_back_once_after_a_crawl() -> None:
    world = World({"primary": during(300, 420, _speaking(0.03), _speaking()), "secondary": _speaking()})
    world.run(900, every_s=0.2)
    assert world.states("primary")[-1] is State.ACTIVE
    back = max(t.time for t in world.transitions if t.event is Event.PLAN_DONE)
    assert back < 620, "streams that crawl on from before the end say nothing of now"
    assert _diverted(world, back, 900) == 0.0
    assert len(world.switches()) <= 4


@pytest.mark.parametrize("sigma", [0.3, 1.0])
@pytest.mark.parametrize("per_s", [0.5, 10])
def test_f06_long_answers_among_short_ones_are_no_crawl(sigma: float, per_s: float) -> None:
    """At 10 a second a few of a busy endpoint's streams always run three times the 95th percentile."""
    world = World({"primary": _speaking(sigma=sigma), "secondary": _speaking()})
    world.run(900, every_s=1 / per_s)
    assert world.states("primary") == [State.ACTIVE]


@pytest.mark.parametrize("per_s", [5, 50])
@pytest.mark.parametrize("share", [0.8, 1.0])
def test_f12_a_hang_ejects_long_before_its_timeouts(per_s: int, share: float) -> None:
    hang = _either(share, always(Reply(float("inf"))), steady)
    world = World({"primary": during(300, 340, hang), "secondary": steady})
    world.run(340, every_s=1 / per_s)
    timeout_s = world.engine.policy.attempts.ttft_timeout_s
    degraded = _first(world, 300)
    ejected = next(t for t in world.transitions if t.to_state is State.EJECTED)
    assert (degraded.event, degraded.cause.metric) == (Event.SLOW, "waiting_s")
    assert (ejected.endpoint_id, ejected.cause.metric) == ("primary", "failure_evidence")
    assert degraded.time < 303.5
    assert ejected.time < 309 < 300 + timeout_s


def test_f06_a_hang_that_is_over_leaves_nothing_against_the_return() -> None:
    """The timeouts of what hung arrive during the return, and do not count again."""
    world = World({"primary": during(300, 310, always(Reply(float("inf")))), "secondary": steady})
    world.run(420, every_s=0.05)
    out = [t for t in world.transitions if t.to_state in (State.EJECTED, State.DEGRADED) and t.time > 311]
    assert out == []
    assert world.states("primary")[-3:] == [State.PROBING, State.CANARY, State.ACTIVE]


@pytest.mark.parametrize("per_s", [2, 20])
def test_f06_an_endpoint_that_is_slow_but_alive_is_degraded_and_never_ejected(per_s: int) -> None:
    """A queue: first bytes take about four times the usual 95th percentile, and all arrive."""

    def queueing(now: float, rng: random.Random) -> Reply:
        return Reply(6 * steady(now, rng).ttft_s)

    world = World({"primary": during(200, 320, queueing), "secondary": steady})
    world.run(500, every_s=1 / per_s)
    states = world.states("primary")
    assert State.DEGRADED in states
    assert State.EJECTED not in states
    assert states[-1] is State.ACTIVE


@pytest.mark.parametrize("outcome", [Outcome.TRUNCATED, Outcome.MALFORMED, Outcome.EMPTY, Outcome.REFUSED_FORMAT])
def test_f01_poor_answers_eject_by_evidence_of_their_own(outcome: Outcome) -> None:
    poor = _either(0.6, always(Reply(0.2, outcome)), steady)
    world = World({"primary": during(300, 360, poor), "secondary": steady, "third": steady})
    world.run(360, every_s=0.1)
    ejected = _first(world, 300)
    assert (ejected.to_state, ejected.cause.metric) == (State.EJECTED, "quality_evidence")
    assert ejected.time < 305
    assert world.engine._live["primary"].detector.evidence == 0.0, "the failure detector heard nothing of it"
    assert all(s.endpoint_id for s in world.between(300, 350)), "a poor answer is tried elsewhere"


@pytest.mark.parametrize("outcome", [Outcome.EMPTY, Outcome.REFUSED_FORMAT])
@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c", "d", "e")])
def test_f06_requests_that_end_poorly_wherever_they_go_eject_nobody(
    outcome: Outcome, share: float, names: tuple[str, ...]
) -> None:
    """One caller's odd prompts, each tried three times, must not take the model's endpoints away from all others."""
    rng, engine, transitions = random.Random(5), engine_of(*names, now=1000.0), []
    for i in range(3000):
        now, tried = 1000.0 + i / 10, frozenset[str]()
        answer = outcome if i > 600 and rng.random() < share else Outcome.OK
        for _ in range(3 if answer is outcome else 1):
            chosen = decide(engine.snapshot, RouteRequest(MODEL, excluded=tried), now, rng.random()).chosen
            if chosen is not None:
                tried |= {chosen.facts.endpoint.id}
                transitions += transitions_of(observe(engine, chosen.facts.endpoint.id, answer, now))
        transitions += transitions_of(engine.tick(now)) if i % 10 == 0 else []
    assert State.EJECTED not in {t.to_state for t in transitions}


def test_f06_poor_answers_of_all_alike_eject_nobody() -> None:
    world = World({"primary": steady, "secondary": steady, "third": steady})
    world.run(300, every_s=0.1)
    world.scripts = {name: _either(0.4, always(Reply(0.2, Outcome.EMPTY)), steady) for name in world.scripts}
    world.run(500, every_s=0.1)
    assert world.states("primary").count(State.EJECTED) <= 1, "the first may be judged before its peers are heard"


def test_f06_an_endpoint_that_answers_empty_now_and_then_is_left_in_peace() -> None:
    """Its own normal counts: one in twelve answers of this one has always been empty."""
    usual = _either(0.08, always(Reply(0.2, Outcome.EMPTY)), steady)
    world = World({"primary": usual, "secondary": steady})
    world.run(2400, every_s=0.4)
    assert _diverted(world, 600, 2400) < 0.02
