"""A forecaster on disk: `arrays.npz` (loaded without pickle) and `manifest.json` (where it comes from, how good it is).

The rule of this file: whatever is loaded has been checked, from the checksum to the last index, so that a damaged file
is an ArtifactError that says what is wrong and where, and never a wrong forecast.
"""

import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as library_version
from pathlib import Path

import msgspec

from scoring.features import FEATURE_SET, NAMES
from scoring.forecaster import Forecaster
from scoring.metrics import Caught, Skill
from scoring.packing import unpack

ARRAYS = "arrays.npz"
MANIFEST = "manifest.json"


class ArtifactError(Exception):
    """A forecaster cannot be loaded; says which file, what is wrong, and what was expected. Can be sent between
    processes.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Provenance and figures of one forecaster.

    `kind`: trees, logistic, level, or a blend of these with the shipped prior. `threshold` is the risk from which on it
    should be acted upon. The figures come from data that neither the fit nor the calibration nor the threshold has
    seen; `skill_shifted` is that in worlds unlike the training's. `incidents` is by kind of incident. `parent` is the
    champion it was compared with, `code` the version of this package; `trained_at`, `data_from` and `data_until` are
    unix seconds (None for the reproducible prior).
    """

    version: str
    kind: str
    code: str
    trained_at: float | None
    seed: int
    feature_set: str
    features: tuple[str, ...]
    horizon_s: float
    threshold: float
    libraries: dict[str, str]
    data: str
    data_from: float | None
    data_until: float | None
    skill: Skill
    skill_shifted: Skill | None = None
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


def code_version() -> str:
    """Return the version of this package, empty when it runs from a tree that was never installed."""
    try:
        return library_version("routecast")
    except PackageNotFoundError:
        return ""


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that shape a fit."""
    return {name: library_version(name) for name in ("numpy", "scikit-learn")}


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
    try:
        return Model(unpack(content), manifest)
    except ValueError as error:
        raise ArtifactError(path, str(error)) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(path, f"cannot be read: {error.strerror}") from error
