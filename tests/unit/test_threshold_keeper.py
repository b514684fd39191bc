"""A change that is applied is in force without a restart, and a damaged record changes nothing (F-16, F-20)."""

import json
from pathlib import Path

import pytest

from analytics.records import ThresholdRecord
from routing.engine import Engine
from routing.model import Capability, Catalogue, Endpoint
from routing.policy import Policy
from scoring.threshold_store import ThresholdStore
from service.thresholds import ThresholdKeeper

NOW = 1_750_000_000.0
CONFIGURED = Policy()


class Frozen:
    """A clock that stands still."""

    def now(self) -> float:
        return NOW


class Replica:
    """An engine with its keeper, and what the keeper recorded."""

    def __init__(self, data: Path) -> None:
        endpoint = Endpoint("a", "p", "r", "z", "m", "m", order=0, capabilities=frozenset({Capability.CHAT}))
        self.engine = Engine(Catalogue.of([endpoint]), CONFIGURED, NOW)
        self.rows: list[ThresholdRecord] = []
        self.store = ThresholdStore(data)
        self.keeper = ThresholdKeeper(self.store, CONFIGURED, self.engine.adopt, self.rows.append, Frozen(), "r1")

    def apply(self, name: str, value: float) -> str:
        change = self.store.propose(
            CONFIGURED, {name: value}, made=NOW, by="tuner", before={"bad_per_1k": 4.0}, after={"bad_per_1k": 3.0},
            evidence={"upper_bound_per_day": 0.6},
        )  # fmt: skip
        return self.store.apply(change.id, now=NOW, by="ada").id


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return Replica(tmp_path)


def test_nothing_applied_changes_and_records_nothing(replica: Replica) -> None:
    replica.keeper.look()
    assert replica.engine.policy is CONFIGURED
    assert replica.rows == []


def test_a_change_is_adopted_at_the_next_look_and_recorded_once(replica: Replica) -> None:
    """F-16: with its figures and evidence, in the history of each replica."""
    change = replica.apply("reflex.failing_rate", 0.4)
    replica.keeper.look()
    replica.keeper.look()
    assert replica.engine.policy.reflex.failing_rate == 0.4
    [row] = replica.rows
    assert (row.change, row.before, row.made_by, row.applied_by) == (change, "", "tuner", "ada")
    assert json.loads(row.moved) == {"reflex.failing_rate": [0.3, 0.4]}
    assert json.loads(row.figures) == {"before": {"bad_per_1k": 4.0}, "after": {"bad_per_1k": 3.0}}
    assert json.loads(row.evidence) == {"upper_bound_per_day": 0.6}


def test_a_roll_back_is_adopted_too(replica: Replica) -> None:
    """F-16: reversible, and the reversal is on record."""
    change = replica.apply("reflex.failing_rate", 0.4)
    replica.keeper.look()
    replica.store.rollback(now=NOW)
    replica.keeper.look()
    assert replica.engine.policy == CONFIGURED
    assert (replica.rows[-1].change, replica.rows[-1].before) == ("", change)


def test_a_proposal_alone_is_not_adopted(replica: Replica) -> None:
    replica.store.propose(
        CONFIGURED, {"reflex.failing_rate": 0.4}, made=NOW, by="tuner", before={}, after={}, evidence={}
    )  # fmt: skip
    replica.keeper.look()
    assert replica.engine.policy is CONFIGURED
    assert replica.rows == []


def test_a_damaged_record_leaves_what_is_in_force(
    replica: Replica, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F-20: told once, not at every look."""
    replica.apply("reflex.failing_rate", 0.4)
    replica.keeper.look()
    (tmp_path / "thresholds" / "changes.json").write_text("{")
    replica.keeper.look()
    replica.keeper.look()
    assert replica.engine.policy.reflex.failing_rate == 0.4
    assert len([entry for entry in caplog.records if "stay as they were" in entry.message]) == 1


def test_a_restart_begins_with_what_is_in_force(replica: Replica, tmp_path: Path) -> None:
    replica.apply("reflex.failing_rate", 0.4)
    again = Replica(tmp_path)
    again.keeper.look()
    assert again.engine.policy.reflex.failing_rate == 0.4
