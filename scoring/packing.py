"""A forecaster as the bytes of one `.npz` archive, and back.

The rule of this file: no pickle, and nothing leaves `unpack` that a forecaster could stumble over. Arrays are named
`<part>.<kind>.<field>`, so the archive alone says what it holds.
"""

import io
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from scoring.calibration import Calibration
from scoring.domain import Domain
from scoring.features import NAMES
from scoring.forecaster import Forecaster, Scores, Weighted
from scoring.forest import Forest
from scoring.level import Level
from scoring.linear import Linear

_Arrays = dict[str, npt.NDArray[Any]]
_MAX_DEPTH = 64
_MAX_PARTS = 8
_MAX_GROUPS = 10_000
_WIDTH = len(NAMES)
_TREES = {
    "feature": np.int32, "threshold": np.float64, "missing_left": np.bool_, "left": np.int32, "right": np.int32,
    "value": np.float64,
}  # fmt: skip
_VECTORS = ("center", "scale", "weight")
_DOMAIN = {"low": (_WIDTH,), "high": (_WIDTH,), "normal": (_WIDTH,), "deciles": (9, _WIDTH)}


def pack(forecaster: Forecaster) -> bytes:
    """Return the bytes of the archive; equal forecasters give equal bytes."""
    arrays: _Arrays = {"parts": np.array([part.weight for part in forecaster.parts])}
    for i, part in enumerate(forecaster.parts):
        arrays |= _packed(f"{i}.", part.model)
    names = sorted(forecaster.groups)
    calibrations = [forecaster.calibration, *(forecaster.groups[name] for name in names)]
    arrays["groups"] = np.array(names, dtype=np.str_)
    arrays["calibrations"] = np.array([[c.slope, c.intercept] for c in calibrations])
    arrays |= {f"domain.{name}": getattr(forecaster.domain, name) for name in _DOMAIN}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _packed(prefix: str, model: Scores) -> _Arrays:
    match model:
        case Forest():
            trees: _Arrays = {f"{prefix}forest.{name}": getattr(model, name) for name in _TREES}
            depth, baseline = np.array(float(model.depth)), np.array(model.baseline)
            return trees | {f"{prefix}forest.depth": depth, f"{prefix}forest.baseline": baseline}
        case Linear():
            vectors: _Arrays = {f"{prefix}linear.{name}": getattr(model, name) for name in _VECTORS}
            return vectors | {f"{prefix}linear.intercept": np.array(model.intercept)}
        case Level():
            return {f"{prefix}level.rule": np.array(1.0)}
    raise TypeError(f"expected a Forest, a Linear or a Level, got {type(model).__name__}")


def unpack(content: bytes) -> Forecaster:
    """Return the forecaster of an archive. Raises ValueError saying what is wrong and what was expected."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays: _Arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"not an archive of arrays: {error}") from error
    weights = _floats(arrays, "parts")
    if weights.ndim != 1 or not 1 <= len(weights) <= _MAX_PARTS or (weights <= 0).any():
        raise ValueError(f"parts: expected 1 to {_MAX_PARTS} positive weights")
    parts = tuple(Weighted(float(weight), _model(arrays, f"{i}.")) for i, weight in enumerate(weights))
    domain = Domain(**{name: _floats(arrays, f"domain.{name}", shape) for name, shape in _DOMAIN.items()})
    calibrations, groups = _calibrations(arrays)
    return Forecaster(parts, calibrations[0], domain, dict(zip(groups, calibrations[1:], strict=True)))


def _calibrations(arrays: _Arrays) -> tuple[list[Calibration], list[str]]:
    groups = _named(arrays, "groups")
    if groups.ndim != 1 or len(groups) > _MAX_GROUPS or (groups.size and groups.dtype.kind != "U"):
        raise ValueError(f"groups: expected up to {_MAX_GROUPS} names")
    pairs = _floats(arrays, "calibrations", (len(groups) + 1, 2))
    if (pairs[:, 0] <= 0).any():
        raise ValueError(f"calibrations: slope = {pairs[:, 0].min()}: expected positive numbers")
    return [Calibration(float(slope), float(intercept)) for slope, intercept in pairs], [str(name) for name in groups]


def _model(arrays: _Arrays, prefix: str) -> Scores:
    kinds = {name.split(".")[1] for name in arrays if name.startswith(prefix)}
    match sorted(kinds):
        case ["forest"]:
            return _forest(arrays, f"{prefix}forest.")
        case ["linear"]:
            vectors = {name: _floats(arrays, f"{prefix}linear.{name}", (_WIDTH,)) for name in _VECTORS}
            if (vectors["scale"] <= 0).any():
                raise ValueError(f"{prefix}linear.scale: expected positive numbers")
            return Linear(**vectors, intercept=float(_floats(arrays, f"{prefix}linear.intercept", ())))
        case ["level"]:
            return Level()
    raise ValueError(f"part {prefix[:-1]}: expected one of forest, linear, level, found {sorted(kinds) or 'nothing'}")


def _forest(arrays: _Arrays, prefix: str) -> Forest:
    trees = {name: _named(arrays, prefix + name) for name in _TREES}
    shape = trees["feature"].shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"feature: expected trees × nodes, got shape {shape}")
    for name, dtype in _TREES.items():
        if trees[name].dtype != dtype or trees[name].shape != shape:
            found = f"{trees[name].dtype} of shape {trees[name].shape}"
            raise ValueError(f"{name}: expected {np.dtype(dtype)} of shape {shape}, got {found}")
    for name, limit in (("feature", _WIDTH), ("left", shape[1]), ("right", shape[1])):
        least, most = int(trees[name].min()), int(trees[name].max())
        if least < 0 or most >= limit:
            raise ValueError(f"{name}: expected indices in [0, {limit}), got {least} to {most}")
    for name in ("threshold", "value"):
        _floats(arrays, prefix + name, shape)
    depth = float(_floats(arrays, f"{prefix}depth", ()))
    if not 0 <= depth <= _MAX_DEPTH:
        raise ValueError(f"depth = {depth}: expected 0 to {_MAX_DEPTH}")
    return Forest(**trees, depth=int(depth), baseline=float(_floats(arrays, f"{prefix}baseline", ())))


def _named(arrays: _Arrays, name: str) -> npt.NDArray[Any]:
    if name not in arrays:
        raise ValueError(f"{name!r} is missing; found {', '.join(sorted(arrays)) or 'nothing'}")
    return arrays[name]


def _floats(arrays: _Arrays, name: str, shape: tuple[int, ...] | None = None) -> npt.NDArray[np.float64]:
    array = _named(arrays, name)
    if array.dtype != np.float64 or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite float64 numbers, got {array.dtype}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    return array
