"""A forecaster on disk: `arrays.npz` (loaded without pickle) and `manifest.json` (where it comes from, how good it is).

The rule of this file: whatever is loaded has been checked, from the checksum to the last index, so that a damaged file
is an ArtifactError that says what is wrong and where, and never a wrong forecast.
"""

import hashlib
import io
import os
import zipfile
from dataclasses import dataclass
from importlib.metadata import version as library_version
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from scoring.features import FEATURE_SET, NAMES
from scoring.forecaster import Calibration, Forecaster, Forest
from scoring.metrics import Caught, Skill

ARRAYS = "arrays.npz"
MANIFEST = "manifest.json"
_MAX_DEPTH = 64
_DTYPES = {
    "feature": np.int32, "threshold": np.float64, "missing_left": np.bool_, "left": np.int32, "right": np.int32,
    "value": np.float64,
}  # fmt: skip
_SCALARS = ("depth", "baseline", "slope", "intercept")


class ArtifactError(Exception):
    """A forecaster cannot be loaded; says which file, what is wrong, and what was expected."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Provenance and figures of one forecaster.

    `threshold` is the risk from which on it should be acted upon. The figures come from data that neither the fit nor
    the calibration nor the threshold has seen. `incidents` is by kind of incident. `parent` is the version it was
    compared with or blended from, `trained_at` unix seconds (None for the reproducible prior).
    """

    version: str
    trained_at: float | None
    seed: int
    feature_set: str
    features: tuple[str, ...]
    horizon_s: float
    threshold: float
    libraries: dict[str, str]
    data: str
    skill: Skill
    false_alarms_per_day: float | None
    endpoint_days: float
    incidents: dict[str, Caught]
    parent: str | None
    arrays_sha256: str


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded forecaster with its manifest."""

    forecaster: Forecaster
    manifest: Manifest


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that shape a fit."""
    return {name: library_version(name) for name in ("numpy", "scikit-learn")}


def pack(forecaster: Forecaster) -> bytes:
    """Return the bytes of `arrays.npz`; equal forecasters give equal bytes."""
    forest, calibration = forecaster.forest, forecaster.calibration
    buffer = io.BytesIO()
    arrays: dict[str, npt.NDArray[np.generic]] = {name: getattr(forest, name) for name in _DTYPES}
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        **arrays,
        depth=np.float64(forest.depth),
        baseline=np.float64(forest.baseline),
        slope=np.float64(calibration.slope),
        intercept=np.float64(calibration.intercept),
    )
    return buffer.getvalue()


def checksum(arrays: bytes) -> str:
    """Return the SHA-256 of packed arrays, as hexadecimal text."""
    return hashlib.sha256(arrays).hexdigest()


def save(directory: Path, arrays: bytes, manifest: Manifest) -> None:
    """Write both files durably into `directory`, which is created; the manifest comes last.

    Raises OSError when the disk refuses and ValueError when the manifest belongs to other arrays.
    """
    if manifest.arrays_sha256 != checksum(arrays):
        raise ValueError(f"manifest of {manifest.version}: its arrays_sha256 is not that of the arrays")
    directory.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    for name, content in ((ARRAYS, arrays), (MANIFEST, text + b"\n")):
        with (directory / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def load_manifest(directory: Path) -> Manifest:
    """Read and check a manifest alone. Raises ArtifactError."""
    path = directory / MANIFEST
    try:
        manifest = msgspec.json.decode(_read(path), type=Manifest)
    except msgspec.DecodeError as error:
        raise ArtifactError(path, f"not a manifest: {error}") from error
    if not 0 < manifest.threshold < 1:
        raise ArtifactError(path, f"threshold = {manifest.threshold}: expected a probability in (0, 1)")
    return manifest


def load(directory: Path) -> Model:
    """Read a forecaster that fits this code. Raises ArtifactError."""
    manifest = load_manifest(directory)
    if manifest.feature_set != FEATURE_SET or manifest.features != NAMES:
        raise ArtifactError(
            directory / MANIFEST, f"made for feature set {manifest.feature_set!r}, expected {FEATURE_SET!r}"
        )
    path = directory / ARRAYS
    content = _read(path)
    found = checksum(content)
    if found != manifest.arrays_sha256:
        raise ArtifactError(
            path, f"damaged: SHA-256 {found[:12]}…, expected {manifest.arrays_sha256[:12]}… (by its manifest)"
        )
    return Model(_unpack(path, content), manifest)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(path, f"cannot be read: {error.strerror}") from error


def _unpack(path: Path, content: bytes) -> Forecaster:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(path, f"not an archive of arrays: {error}") from error
    missing = [name for name in (*_DTYPES, *_SCALARS) if name not in arrays]
    if missing:
        raise ArtifactError(path, f"expected the arrays {', '.join((*_DTYPES, *_SCALARS))}; {missing[0]!r} is missing")
    for name in _SCALARS:
        if arrays[name].shape != () or arrays[name].dtype != np.float64 or not np.isfinite(arrays[name]):
            raise ArtifactError(path, f"{name}: expected one finite float64")
    _check_trees(path, arrays)
    scalars = {name: float(arrays[name]) for name in _SCALARS}
    if not 0 <= scalars["depth"] <= _MAX_DEPTH:
        raise ArtifactError(path, f"depth = {scalars['depth']}: expected 0 to {_MAX_DEPTH}")
    if not scalars["slope"] > 0:
        raise ArtifactError(path, f"slope = {scalars['slope']}: expected a positive number")
    forest = Forest(
        **{name: arrays[name] for name in _DTYPES}, depth=int(scalars["depth"]), baseline=scalars["baseline"]
    )
    return Forecaster(forest, Calibration(scalars["slope"], scalars["intercept"]))


def _check_trees(path: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    shape = arrays["feature"].shape
    if len(shape) != 2 or 0 in shape:
        raise ArtifactError(path, f"feature: expected trees × nodes, got shape {shape}")
    for name, dtype in _DTYPES.items():
        if arrays[name].dtype != dtype or arrays[name].shape != shape:
            found = f"{arrays[name].dtype} of shape {arrays[name].shape}"
            raise ArtifactError(path, f"{name}: expected {np.dtype(dtype)} of shape {shape}, got {found}")
    for name, limit in (("feature", len(NAMES)), ("left", shape[1]), ("right", shape[1])):
        values = arrays[name].astype(np.int64)
        if values.min() < 0 or values.max() >= limit:
            raise ArtifactError(path, f"{name}: expected indices in [0, {limit}), got {values.min()} to {values.max()}")
    for name in ("threshold", "value"):
        if not np.isfinite(arrays[name].astype(np.float64)).all():
            raise ArtifactError(path, f"{name}: expected finite numbers")
