"""Every change of thresholds is recorded with its evidence, and taken back in one step (F-16)."""

from pathlib import Path

import pytest

from routing.errors import PolicyError
from routing.policy import Policy, ReflexPolicy
from scoring.threshold_store import Change, Status, ThresholdStore, ThresholdStoreError
from scoring.thresholds import Value

NOW = 1_750_000_000.0
_SHIPPED = Policy()


def proposed(store: ThresholdStore, moved: dict[str, Value], made: float = NOW, policy: Policy = _SHIPPED) -> Change:
    return store.propose(
        policy, moved, made=made, by="tuner", before={"bad_per_1k": 4.0}, after={"bad_per_1k": 3.0},
        evidence={"provider_days": 5.0, "upper_bound_per_day": 0.6},
    )  # fmt: skip


def test_nothing_is_created_before_something_is_proposed(tmp_path: Path) -> None:
    store = ThresholdStore(tmp_path / "data")
    assert store.changes() == []
    assert store.in_force(Policy()).policy == Policy()
    assert store.stamp() == 0
    assert not (tmp_path / "data").exists()


def test_a_proposal_changes_nothing_until_it_is_applied(tmp_path: Path) -> None:
    """F-16: with figures before and after, evidence and parent on record."""
    store = ThresholdStore(tmp_path)
    change = proposed(store, {"reflex.failing_rate": 0.4})
    assert store.in_force(Policy()).policy == Policy()
    stamp = store.stamp()
    store.apply(change.id, now=NOW + 1, by="ada")
    assert store.stamp() != stamp
    found = ThresholdStore(tmp_path).in_force(Policy())
    assert found.policy.reflex.failing_rate == 0.4
    assert found.change is not None
    assert found.change.changed == {"reflex.failing_rate": (0.3, 0.4)}
    assert (found.change.before, found.change.after) == ({"bad_per_1k": 4.0}, {"bad_per_1k": 3.0})
    assert found.change.evidence["provider_days"] == 5.0
    assert (found.change.parent, found.change.by, found.change.applied_by) == ("", "tuner", "ada")


def test_changes_build_on_each_other_and_roll_back_one_by_one(tmp_path: Path) -> None:
    """F-16: reversible in one command."""
    store = ThresholdStore(tmp_path)
    first = proposed(store, {"reflex.failing_rate": 0.4})
    store.apply(first.id, now=NOW, by="ada")
    second = proposed(store, {"failback.steps": (0.2, 0.5)}, NOW + 1)
    store.apply(second.id, now=NOW + 1, by="ada")
    both = store.in_force(Policy()).policy
    assert (both.reflex.failing_rate, both.failback.steps) == (0.4, (0.2, 0.5))
    assert second.parent == first.id
    store.rollback(now=NOW + 2)
    one = store.in_force(Policy()).policy
    assert (one.reflex.failing_rate, one.failback.steps) == (0.4, Policy().failback.steps)
    store.rollback(now=NOW + 3)
    assert store.in_force(Policy()).policy == Policy()
    assert [change.status for change in store.changes()] == [Status.ROLLED_BACK, Status.ROLLED_BACK]
    with pytest.raises(ThresholdStoreError, match="nothing to roll back"):
        store.rollback(now=NOW + 4)


def test_a_proposal_against_what_is_no_longer_in_force_is_refused(tmp_path: Path) -> None:
    store = ThresholdStore(tmp_path)
    first, late = proposed(store, {"reflex.failing_rate": 0.4}), proposed(store, {"reflex.ejection_s": 10.0}, NOW + 1)
    store.apply(first.id, now=NOW, by="ada")
    with pytest.raises(ThresholdStoreError, match="propose again"):
        store.apply(late.id, now=NOW, by="ada")
    with pytest.raises(ThresholdStoreError, match="no proposal"):
        store.apply(first.id, now=NOW, by="ada")


def test_automatic_changes_are_bounded_per_day(tmp_path: Path) -> None:
    """F-16: and somebody's own decision is not."""
    store = ThresholdStore(tmp_path)
    for hour, rate in ((0, 0.4), (30, 0.5)):
        change = proposed(store, {"reflex.failing_rate": rate}, NOW + hour * 3600)
        store.apply(change.id, now=NOW + hour * 3600, by="tuner", automatic=True, most_per_day=1)
    third = proposed(store, {"reflex.failing_rate": 0.6}, NOW + 31 * 3600)
    with pytest.raises(ThresholdStoreError, match="at most 1"):
        store.apply(third.id, now=NOW + 31 * 3600, by="tuner", automatic=True, most_per_day=1)
    store.apply(third.id, now=NOW + 31 * 3600, by="ada")


def test_an_edited_configuration_counts_more_than_a_change_made_before(tmp_path: Path) -> None:
    store = ThresholdStore(tmp_path)
    store.apply(proposed(store, {"reflex.failing_rate": 0.4, "reflex.ejection_s": 10.0}).id, now=NOW, by="ada")
    edited = Policy(reflex=ReflexPolicy(failing_rate=0.5))
    found = store.in_force(edited)
    assert found.ignored == ("reflex.failing_rate",)
    assert (found.policy.reflex.failing_rate, found.policy.reflex.ejection_s) == (0.5, 10.0)
    later = proposed(store, {"failback.min_hold_s": 20.0}, NOW + 1, edited)
    assert set(later.values) == {"reflex.ejection_s", "failback.min_hold_s"}


def test_a_change_that_is_no_sound_policy_is_not_recorded(tmp_path: Path) -> None:
    store = ThresholdStore(tmp_path)
    with pytest.raises(PolicyError):
        proposed(store, {"reflex.failing_rate": 7.0})
    assert store.changes() == []


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    store = ThresholdStore(tmp_path)
    proposed(store, {"reflex.failing_rate": 0.4})
    (tmp_path / "thresholds" / "changes.json").write_text('{"generation": "many"}')
    with pytest.raises(ThresholdStoreError, match=r"changes\.json"):
        store.in_force(Policy())
