"""The shipped forecaster in the arena: it warns before a queue hurts; its gate never leaves a policy without choice."""

from random import Random

import pytest

from routing.actions import Action, Finished
from routing.engine import Engine
from routing.forecasts import Forecasts
from routing.health import State
from routing.model import Catalogue
from routing.outcomes import Outcome
from routing.policy import Policy
from scoring.acting import EXPLORE
from scoring.protocol import Batch, EndpointInfo, Hello, Observation
from scoring.scorer import Scorer
from service.config import Scoring
from sim.arena.loop import run
from sim.arena.scenario import parse_scenario
from sim.arena.truth import World, make_world
from sim.policies import make
from sim.policies.consecutive import Consecutive, ConsecutiveSettings
from sim.policies.forecast import ArenaForecaster, ForecastGate, shipped
from sim.policies.routecast import Routecast
from sim.scorecard.definitions import Evidence, measure
from tests.policy_driver import ERROR, LIMITED, OK, Feed, endpoints, request

QUEUE = """
name: queue
description: One slow build-up at the primary.
duration_s: 1500
arrivals: {rate_per_s: 8}
endpoints:
  - {id: a, provider: a, region: eu, ttft_ms: 400, usd_per_mtok: 1}
  - {id: b, provider: b, region: eu, ttft_ms: 450, usd_per_mtok: 1}
incidents:
  - {kind: queue, endpoint: a, at_s: 1000, climb_s: 180, hold_s: 200}
"""


def _world() -> World:
    return make_world(parse_scenario(QUEUE), 4321)


def _measured(name: str) -> dict[str, float | None]:
    world = _world()
    log = run(world, make(name, world.endpoints, world.seed), check=True)
    return measure(Evidence(log, world.troubles, world.normal_ttft_s))


def test_f09_f10_the_forecast_warns_of_a_queue_before_it_hurts_and_the_reflex_cannot() -> None:
    early, reflex = _measured("routecast-forecast"), _measured("routecast-reflex")
    assert early["early_recall"] == 1.0
    assert (early["lead_s"] or 0) > 5
    assert (early["bad_per_1k"] or 0) <= (reflex["bad_per_1k"] or 0)


def test_a_gate_moves_what_a_policy_that_counts_failures_never_would() -> None:
    world = _world()
    gate = ForecastGate(Consecutive(2, ConsecutiveSettings()), world.endpoints, "consecutive+forecast")
    gated = measure(Evidence(run(world, gate, check=True), world.troubles, world.normal_ttft_s))
    alone = _measured("consecutive")
    assert (gated["bad_per_1k"] or 0) < (alone["bad_per_1k"] or 0)
    assert gated["early_recall"] == 1.0
    assert alone["early_recall"] == 0.0


def test_a_gate_that_is_shut_everywhere_stands_aside() -> None:
    gate = ForecastGate(Consecutive(2, ConsecutiveSettings()), endpoints(2), "consecutive+forecast")
    gate._shut = frozenset({0, 1})  # no forecast of the shipped model says so at will
    assert gate.route(request(0), [], 0.0, 0.5) == 0


def test_a_gate_never_sends_traffic_where_nobody_was_ever_served() -> None:
    """The second endpoint hangs from the first second on: no forecast can speak of it, and the gate must not move the
    queue's traffic there.
    """
    dead = "  - {kind: hang, endpoint: b, at_s: 0, hold_s: 1500, probability: 1}\n"
    world = make_world(parse_scenario(QUEUE + dead), 4321)
    alone = run(world, make("prequal", world.endpoints, world.seed))
    gated = run(world, make("prequal+forecast", world.endpoints, world.seed), check=True)
    assert gated.first.tolist() == alone.first.tolist()


def _behind_a_gate_after_good_times() -> tuple[ForecastGate, Feed]:
    """Two endpoints that answered four times a second for 900 s, in 0.3 s give or take a fifth."""
    gate, rng = ForecastGate(Consecutive(2, ConsecutiveSettings()), endpoints(2), "consecutive+forecast"), Random(1)
    feed = Feed(gate)
    for tick in range(4 * 900):
        for endpoint in range(2):
            feed.attempt(endpoint, OK, tick / 4, ttft_s=rng.lognormvariate(-1.2, 0.2), latency_s=1.0)
        gate.tick(tick / 4)
    return gate, feed


def _is_alarmed(gate: ForecastGate, now: float) -> bool:
    forecaster = gate._forecaster
    risk = forecaster.risks(forecaster.features(gate._windows, now))[0]
    return risk is not None and risk >= forecaster.model.manifest.threshold


@pytest.mark.parametrize(("trouble", "stays_shut"), [(ERROR, False), (LIMITED, True)])
def test_a_gate_leaves_to_retries_what_fails_at_once_and_works_again(trouble: Outcome, stays_shut: bool) -> None:
    gate, feed = _behind_a_gate_after_good_times()
    for second in range(901, 906):
        feed.attempts(0, trouble, 3, float(second))
        gate.tick(float(second))
    assert gate.warned() == {0}, "while it fails"
    feed.attempt(0, OK, 905.5)
    gate.tick(906.0)
    assert _is_alarmed(gate, 906.0)
    assert (gate.warned() == {0}) is stays_shut


def test_a_gate_tries_again_after_a_second_for_each_failure_in_a_row() -> None:
    gate, feed = _behind_a_gate_after_good_times()
    feed.attempts(0, ERROR, 12, 901.0)
    shut = []
    for second in range(901, 921):
        feed.attempt(1, OK, float(second))
        gate.tick(float(second))
        shut.append(gate.warned() == {0})
    assert shut == [True] * 12 + [False] * 8
    assert _is_alarmed(gate, 920.0)


class _Overheard(Engine):
    """An engine that writes down what it hears, as the link to the scoring process does."""

    def __init__(self, catalogue: Catalogue, policy: Policy, now: float) -> None:
        super().__init__(catalogue, policy, now)
        self.heard: list[Observation] = []
        self._places = {endpoint_id: i for i, endpoint_id in enumerate(catalogue.endpoints)}

    def started(self, endpoint_id: str, attempt_id: str, now: float, *, streamed: bool = True) -> None:
        place = self._places[endpoint_id]
        self.heard.append(Observation("started", place, attempt_id, now, streamed=streamed))
        super().started(endpoint_id, attempt_id, now, streamed=streamed)

    def first_byte(self, endpoint_id: str, attempt_id: str, now: float) -> None:
        self.heard.append(Observation("first_byte", self._places[endpoint_id], attempt_id, now))
        super().first_byte(endpoint_id, attempt_id, now)

    def finished(self, result: Finished, now: float) -> list[Action]:
        self._ended(result, now)
        return super().finished(result, now)

    def probed(self, result: Finished, now: float) -> list[Action]:
        # Of one that is not out, a probe is an attempt like any other, and `finished` hears of it.
        if self.health_of(result.endpoint_id).state is State.PROBING:
            self._ended(result, now)
        return super().probed(result, now)

    def _ended(self, result: Finished, now: float) -> None:
        self.heard.append(
            Observation(
                "finished", self._places[result.endpoint_id], result.attempt_id, now, result.outcome, result.ttft_s,
                result.reply_s, result.output_tokens, result.generation_s,
            )
        )  # fmt: skip


def test_f09_the_arena_forecasts_what_the_scoring_process_would() -> None:
    """Same observations, same seconds, same model: the same risks, alarms and shares, canary alarms included."""
    world = _world()
    forecaster = ArenaForecaster(world.endpoints, seed=5, explore=0.5)
    infos = [EndpointInfo(e.id, e.provider, e.region, e.zone, "arena") for e in world.endpoints]
    scorer = Scorer(Hello(infos, "", "r", explore=0.5), lambda _: None, Random(5))
    scorer.serve(shipped())
    alarmed: set[float] = set()

    def both(engine: Engine, now: float) -> Forecasts | None:
        said = forecaster(engine, now)
        if said is not None and isinstance(engine, _Overheard):
            heard, engine.heard = engine.heard, []
            would = scorer.take(Batch(now, heard))
            assert would is not None
            assert said.risks == pytest.approx(would.risks, abs=1e-6)
            assert said.kept == pytest.approx({name: alarm.kept for name, alarm in would.alarms.items()}, abs=1e-6)
            assert (said.forecaster, said.threshold) == (would.forecaster, would.threshold)
            alarmed.update(said.kept.values())
        return said

    run(world, Routecast(world.endpoints, None, both, make_engine=_Overheard))
    assert min(alarmed) < 0.5, "the queue raised an alarm"


def test_the_arena_explores_as_a_service_does_by_default() -> None:
    """The configuration says it again, because reading one should not cost the import of numpy."""
    assert Scoring().explore == EXPLORE


def test_the_shipped_model_is_read_once() -> None:
    assert shipped() is shipped()
