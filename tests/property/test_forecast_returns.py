"""A forecaster may be as wrong as it likes: an endpoint that serves well gets its traffic back, and keeps most."""

from collections.abc import Callable
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from routing.actions import Finished, Probe
from routing.engine import Engine
from routing.forecasts import Forecasts
from routing.health import State
from routing.outcomes import Outcome
from routing.policy import FailbackKind, FailbackPolicy, Policy
from tests.routing_world import MODEL, engine_of, observe

THRESHOLD = 0.5
HOURS = 3
STEP_S = 2
# What a wrong forecaster may go by: the time in seconds, and the share that the endpoint keeps.
Says = Callable[[int, float, float], float | None]
PATTERNS: dict[str, Says] = {
    "always": lambda _, __, risk: risk,
    "now and then": lambda second, _, risk: risk if second % 60 < 6 else 0.0,
    "wavering": lambda second, _, risk: risk if second % 14 < 6 else 0.0,
    "once, and never sure that it is over": lambda second, _, risk: risk if second < 10 else THRESHOLD * 0.6,
    "in full service": lambda _, share, risk: risk if share == 1.0 else 0.0,
    "away from full service": lambda second, share, risk: risk if share < 1.0 or second % 600 < 4 else 0.0,
    "on the way back": lambda second, share, risk: risk if 0.1 < share < 1.0 or second % 600 < 4 else 0.0,
    "in full service, and nothing elsewhere": lambda _, share, risk: risk if share == 1.0 else None,
}


def _share(engine: Engine, name: str) -> float:
    (found,) = (c.facts.admission for c in engine.snapshot.candidates(MODEL) if c.facts.endpoint.id == name)
    return found


def _shares(says: Says, risk: float, per_s: float, kind: FailbackKind, fails_at: int | None) -> list[float]:
    """Return what "a" keeps every two seconds, while all it does from `fails_at` + 20 on is to serve well."""
    engine, now = engine_of("a", "b", policy=Policy(failback=FailbackPolicy(kind, ramp_step=0.3))), 10_000.0
    kept, due = [], 0.0
    for second in range(0, HOURS * 3600, STEP_S):
        now += STEP_S
        share = _share(engine, "a")
        due += per_s * STEP_S * share
        fails = fails_at is not None and fails_at <= second < fails_at + 20
        while due >= 1.0 and engine.health_of("a").state not in (State.EJECTED, State.PROBING):
            due -= 1.0
            observe(engine, "a", Outcome.SERVER_ERROR if fails else Outcome.OK, now, None if fails else 0.2)
        said = says(second, share, risk)
        risks = {"b": 0.0} if said is None else {"a": said, "b": 0.0}
        engine.forecast(Forecasts(now, "wrong", THRESHOLD, risks, {"a": 0.2}), now)
        for action in engine.tick(now):
            if isinstance(action, Probe):
                engine.probed(Finished(action.endpoint.id, "p", Outcome.SERVER_ERROR if fails else Outcome.OK), now)
        kept.append(_share(engine, "a"))
    return kept


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(sorted(PATTERNS)),
    st.floats(THRESHOLD, 0.97),
    st.sampled_from([0.1, 0.5, 2.0]),
    st.sampled_from(FailbackKind),
    st.sampled_from([None, 30]),
)
@example("always", 0.97, 0.5, FailbackKind.CANARY, None)
@example("wavering", 0.9, 0.5, FailbackKind.CANARY, None)
@example("once, and never sure that it is over", 0.6, 0.5, FailbackKind.CANARY, None)
@example("on the way back", 0.9, 0.1, FailbackKind.GRADUAL, 30)
@example("always", 0.9, 0.5, FailbackKind.CANARY, 30)
@example("in full service, and nothing elsewhere", 0.9, 0.1, FailbackKind.CANARY, None)
def test_f06_f20_no_forecast_however_wrong_diverts_for_ever_or_makes_traffic_flap(
    pattern: str, risk: float, per_s: float, kind: FailbackKind, fails_at: int | None
) -> None:
    """After the two hours in which trust is lost, an hour: most of it in full service, and few changes."""
    kept = _shares(PATTERNS[pattern], risk, per_s, kind, fails_at)[2 * 3600 // STEP_S :]
    assert sum(share == 1.0 for share in kept) >= 0.5 * len(kept)
    assert sum((before >= 0.5) != (after >= 0.5) for before, after in pairwise(kept)) <= 12
