import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from scoring.artifact import ArtifactError, checksum, load, save
from scoring.calibration import Calibration
from scoring.features import FEATURE_SET, NAMES
from scoring.forecaster import Forecaster, Weighted
from scoring.level import Level
from scoring.linear import Linear
from scoring.packing import pack
from scoring.registry import PRIOR
from tests.forecasters import EVERYWHERE, manifest, stump


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    arrays = pack(stump())
    save(tmp_path / "m", arrays, manifest(arrays))
    return tmp_path / "m"


def test_a_saved_model_comes_back_bit_for_bit(saved: Path) -> None:
    x = np.random.default_rng(1).random((50, len(NAMES)))
    model = load(saved)
    assert model.forecaster.risks(x).tolist() == stump().risks(x).tolist()
    assert model.manifest == manifest(pack(stump()))
    assert pack(model.forecaster) == (saved / "arrays.npz").read_bytes()


def test_every_kind_of_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    linear = Linear(rng.random(len(NAMES)), 0.5 + rng.random(len(NAMES)), rng.normal(size=len(NAMES)), -3.0)
    parts = (*stump().parts, Weighted(0.3, linear), Weighted(0.2, Level()))
    whole = Forecaster(parts, Calibration(1.2, -0.5), EVERYWHERE, {"öst": Calibration(0.9, 0.1), "west": Calibration()})
    arrays = pack(whole)
    save(tmp_path / "m", arrays, manifest(arrays))
    loaded, x = load(tmp_path / "m").forecaster, rng.normal(size=(40, len(NAMES)))
    groups = ["öst", "west", "north", "öst"] * 10
    assert loaded.risks(x, groups).tolist() == whole.risks(x, groups).tolist()
    assert loaded.risks(x, ["öst"] * 40).tolist() != loaded.risks(x).tolist()
    assert pack(loaded) == arrays


@pytest.mark.parametrize("at", [0, 100, -30])
def test_a_flipped_bit_is_found(saved: Path, at: int) -> None:
    content = bytearray((saved / "arrays.npz").read_bytes())
    content[at] ^= 1
    (saved / "arrays.npz").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"arrays\.npz: damaged: SHA-256"):
        load(saved)


def test_a_missing_file_is_named(saved: Path) -> None:
    (saved / "arrays.npz").unlink()
    with pytest.raises(ArtifactError, match=r"arrays\.npz: cannot be read: No such file"):
        load(saved)
    (saved / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read"):
        load(saved)


def test_another_feature_set_is_refused(saved: Path) -> None:
    text = (saved / "manifest.json").read_text().replace(FEATURE_SET, "f1-old")
    (saved / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=f"made for feature set 'f1-old', expected '{FEATURE_SET}'"):
        load(saved)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("threshold", 1.5, "threshold = 1.5"), ("seed", "x", "seed"), ("skill", {"rows": 1}, "skill")],
)
def test_a_wrong_manifest_names_the_field(saved: Path, field: str, value: object, message: str) -> None:
    content = json.loads((saved / "manifest.json").read_text())
    content[field] = value
    (saved / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=message):
        load(saved)


def replace_arrays(directory: Path, content: bytes) -> None:
    manifest_path = directory / "manifest.json"
    described = json.loads(manifest_path.read_text())
    described["arrays_sha256"] = checksum(content)
    manifest_path.write_text(json.dumps(described))
    (directory / "arrays.npz").write_bytes(content)


def arrays_with(tmp_path: Path, **changed: object) -> bytes:
    with np.load(tmp_path / "arrays.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays.update({name: np.asarray(value) for name, value in changed.items() if value is not None})
    for name in [name for name, value in changed.items() if value is None]:
        del arrays[name]
    np.savez(tmp_path / "changed.npz", allow_pickle=True, **arrays)
    return (tmp_path / "changed.npz").read_bytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"0.forest.feature": np.full((1, 3), 99, np.int32)}, r"feature: expected indices in \[0, "),
        ({"0.forest.left": np.full((1, 3), -1, np.int32)}, r"left: expected indices in \[0, 3\)"),
        ({"0.forest.right": np.zeros((1, 3))}, "right: expected int32"),
        ({"0.forest.value": np.full((1, 3), np.nan)}, "value: expected finite"),
        ({"0.forest.threshold": np.zeros((1, 4))}, r"threshold: expected float64 of shape \(1, 3\)"),
        ({"0.forest.depth": np.float64(1e6)}, "depth = 1000000"),
        ({"0.forest.baseline": None}, r"'0\.forest\.baseline' is missing"),
        ({"0.forest.value": np.array([[None, 1, 2]], dtype=object)}, "not an archive of arrays: Object arrays"),
        ({"0.linear.scale": np.ones(len(NAMES))}, "part 0: expected one of forest, linear, level, found"),
        ({"parts": np.zeros(1)}, "parts: expected 1 to 8 positive weights"),
        ({"parts": np.ones(2)}, "part 1: expected one of forest, linear, level, found nothing"),
        ({"calibrations": np.array([[-1.0, 0.0]])}, "slope = -1"),
        ({"groups": np.array(["a"])}, r"calibrations: expected shape \(2, 2\)"),
        ({"domain.low": np.zeros(3)}, r"domain\.low: expected shape"),
        ({"domain.deciles": None}, r"'domain\.deciles' is missing"),
    ],
)
def test_arrays_that_no_forecaster_could_walk_are_refused(
    saved: Path, changed: dict[str, object], message: str
) -> None:
    replace_arrays(saved, arrays_with(saved, **changed))
    with pytest.raises(ArtifactError, match=message):
        load(saved)


def test_a_pickle_is_never_loaded(saved: Path) -> None:
    replace_arrays(saved, pickle.dumps({"feature": 1}))
    with pytest.raises(ArtifactError, match="not an archive of arrays"):
        load(saved)


def test_the_shipped_prior_loads_and_is_small() -> None:
    model = load(PRIOR)
    assert model.manifest.version.startswith("prior-")
    assert sum(path.stat().st_size for path in PRIOR.iterdir()) < 500_000
    assert model.manifest.skill.brier_skill is not None
    assert model.manifest.skill.brier_skill > 0.25
    assert model.manifest.false_alarms_per_day is not None
    assert model.manifest.false_alarms_per_day <= 3.5  # chosen for 3 on other worlds
