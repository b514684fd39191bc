"""Roles of forecasters: who serves, who is watched, and the way back (F-20)."""

from pathlib import Path

import pytest

from scoring.artifact import ArtifactError, load
from scoring.packing import pack
from scoring.registry import PRIOR, Registry, Role
from scoring.roles import Roles
from tests.forecasters import manifest, stump

PRIOR_VERSION = load(PRIOR).manifest.version


def registered(data_dir: Path, *versions: str) -> Registry:
    registry = Registry(data_dir)
    for number, version in enumerate(versions):
        arrays = pack(stump(1.0 + number))
        registry.register(arrays, manifest(arrays, version))
    return registry


def served(registry: Registry) -> str:
    model = registry.champion().model
    return model.manifest.version if model else ""


def test_without_roles_the_prior_is_served(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert (served(registry), registry.champion().problem) == (PRIOR_VERSION, "")
    assert registry.shadow() is None
    assert not list(tmp_path.iterdir())


def test_a_promoted_model_is_served_and_the_stamp_tells(tmp_path: Path) -> None:
    registry = registered(tmp_path, "v1")
    assert registry.stamp() == 0
    registry.promote("v1")
    stamp = registry.stamp()
    assert stamp != 0
    assert served(registry) == "v1"
    registry.watch("v1", 5.0)
    assert registry.stamp() != stamp


def test_roles_are_champion_shadow_retired_and_candidate(tmp_path: Path) -> None:
    registry = registered(tmp_path, "v1", "v2", "v3", "v4")
    for version in ("v1", "v2"):
        registry.promote(version)
    registry.watch("v3", 7.0)
    assert {m.version: role for m, role in registry.versions()} == {
        "v1": Role.RETIRED, "v2": Role.CHAMPION, "v3": Role.SHADOW, "v4": Role.CANDIDATE,
    }  # fmt: skip
    shadow = registry.shadow()
    assert shadow is not None
    assert shadow.manifest.version == "v3"
    registry.promote("v3")
    assert registry.roles() == Roles(champion="v3", previous=(None, "v1", "v2"))


def test_rolling_back_goes_the_way_it_came_and_ends_at_the_reflex(tmp_path: Path) -> None:
    """F-20: v2 → v1 → the prior → no forecast at all; promoting somebody ends the floor."""
    registry = registered(tmp_path, "v1", "v2")
    registry.promote("v1")
    registry.promote("v2")
    assert registry.roll_back("v2") is not None
    assert served(registry) == "v1"
    registry.roll_back("v1")
    assert served(registry) == PRIOR_VERSION
    after = registry.roll_back(PRIOR_VERSION)
    assert after is not None
    assert after.floored
    assert registry.champion().model is None
    assert (registry.champion().problem, registry.champion().floored) == ("", True)
    assert registry.roll_back(PRIOR_VERSION) is None
    registry.promote(PRIOR_VERSION)
    assert served(registry) == PRIOR_VERSION


def test_rolling_back_skips_what_cannot_be_loaded_and_what_was_taken_back(tmp_path: Path) -> None:
    registry = registered(tmp_path, "v1", "v2", "v3")
    for version in ("v1", "v2", "v3"):
        registry.promote(version)
    (tmp_path / "models" / "v2" / "arrays.npz").unlink()
    registry.roll_back("v3")
    assert served(registry) == "v1"
    registry.promote("v3")
    registry.roll_back("v3")
    assert served(registry) == "v1"
    assert registry.roll_back("v3") is None, "it does not serve any more"


def test_a_model_that_cannot_be_loaded_gets_no_role(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for version in ("nowhere", "../outside"):
        with pytest.raises(ArtifactError):
            registry.promote(version)
        with pytest.raises(ArtifactError):
            registry.watch(version, 1.0)
    assert registry.stamp() == 0


@pytest.mark.parametrize(
    "damage", ["gone", "{", '{"champion": "../../etc"}', '{"champion": 7}', '{"unknown": 1}', "\x00\xff"]
)
def test_a_broken_champion_falls_back_to_the_prior_and_says_why(tmp_path: Path, damage: str) -> None:
    registry = registered(tmp_path, "v1")
    registry.promote("v1")
    if damage == "gone":
        (tmp_path / "models" / "v1" / "arrays.npz").unlink()
    else:
        (tmp_path / "models" / "roles.json").write_text(damage)
    champion = registry.champion()
    assert champion.model is not None
    assert champion.model.manifest.version == PRIOR_VERSION
    assert champion.problem


def test_with_no_usable_model_there_is_none_and_a_reason(tmp_path: Path) -> None:
    champion = Registry(tmp_path, prior=tmp_path / "empty").champion()
    assert champion.model is None
    assert "manifest.json: cannot be read" in champion.problem
