"""What counts of a run, and when a policy left (F-16)."""

import numpy as np
import pytest

from sim.arena.incidents import ArenaKind
from sim.arena.log import Log
from sim.arena.truth import Trouble
from sim.replay.play import counted, left_s
from sim.scorecard.definitions import Evidence

ON, OFF = True, False


def log_of(first: list[int], warned: tuple[tuple[float, int, bool], ...] = ()) -> Log:
    """One request a second, each sent first where `first` says."""
    n = len(first)
    return Log(
        endpoints=2,
        duration_s=float(n),
        arrival_s=np.arange(n, dtype=np.float64),
        first=np.array(first),
        attempts=np.ones(n, dtype=np.int64),
        failed=np.zeros(n, dtype=np.bool_),
        hedged=np.zeros(n, dtype=np.bool_),
        ttft_s=np.full(n, 0.1),
        cost_usd=np.ones(n),
        probe_s=np.array([10.0, 100.0]),
        probe_endpoint=np.array([1, 1]),
        probe_cost_usd=np.array([0.5, 0.25]),
        warned_s=np.array([at for at, _, _ in warned]),
        warned_endpoint=np.array([endpoint for _, endpoint, _ in warned], dtype=np.int64),
        warned_on=np.array([on for _, _, on in warned], dtype=np.bool_),
    )


def test_a_warm_up_does_not_count() -> None:
    log = counted(log_of([0] * 60 + [1] * 60), 60.0)
    assert (log.duration_s, len(log.arrival_s), log.arrival_s[0]) == (60.0, 60, 0.0)
    assert set(log.first.tolist()) == {1}
    assert log.probe_s.tolist() == [40.0]
    assert log.probe_cost_usd.tolist() == [0.25]


def test_a_warning_that_is_on_at_the_end_of_the_warm_up_begins_there() -> None:
    """Else its end would be taken for that of the next warning."""
    warned = ((10.0, 0, ON), (20.0, 1, ON), (30.0, 1, OFF), (70.0, 0, OFF), (90.0, 0, ON))
    log = counted(log_of([0] * 120, warned), 60.0)
    assert log.warned_s.tolist() == [0.0, 10.0, 30.0]
    assert log.warned_endpoint.tolist() == [0, 0, 0]
    assert log.warned_on.tolist() == [ON, OFF, ON]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ([0] * 1000, None),  # it stayed
        ([0] * 400 + [1] * 600, 0),  # it left when the incident began, and a share trails by some seconds
        ([0] * 340 + [1] * 660, -60),
        ([0] * 430 + [1] * 570, 30),
        ([1] * 1000, None),  # it was never there
        ([0] * 300 + [1] * 50 + [0] * 100 + [1] * 550, 50),  # an earlier absence is another matter
    ],
)
def test_when_a_policy_left(first: list[int], expected: float | None) -> None:
    trouble = Trouble(ArenaKind.ABRUPT, 0, 400.0, 500.0)
    found = left_s(Evidence(log_of(first), [trouble], 0.1), trouble)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert 0 <= found - expected <= 10
