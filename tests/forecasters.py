"""Small forecasters and their manifests, for tests."""

import numpy as np

from scoring.artifact import Manifest, checksum, code_version, libraries
from scoring.calibration import Calibration
from scoring.domain import Domain
from scoring.features import FEATURE_SET, NAMES
from scoring.forecaster import Forecaster, Weighted
from scoring.forest import Forest
from scoring.metrics import Skill

_K = len(NAMES)
EVERYWHERE = Domain(np.full(_K, -1e9), np.full(_K, 1e9), np.zeros(_K), np.zeros((9, _K)))


def stump(value: float = 1.0) -> Forecaster:
    """One tree with one split on the first feature at 0.5."""
    forest = Forest(
        feature=np.zeros((1, 3), dtype=np.int32),
        threshold=np.array([[0.5, 0.0, 0.0]]),
        missing_left=np.zeros((1, 3), dtype=np.bool_),
        left=np.array([[1, 1, 2]], dtype=np.int32),
        right=np.array([[2, 1, 2]], dtype=np.int32),
        value=np.array([[0.0, -value, value]]),
        depth=1,
        baseline=-2.0,
    )
    return Forecaster((Weighted(1.0, forest),), Calibration(1.5, 0.25), EVERYWHERE)


def manifest(arrays: bytes, version: str = "v1", threshold: float = 0.4) -> Manifest:
    return Manifest(
        version=version,
        kind="trees",
        code=code_version(),
        trained_at=1.0,
        seed=1,
        feature_set=FEATURE_SET,
        features=NAMES,
        horizon_s=60.0,
        threshold=threshold,
        libraries=libraries(),
        data="a test",
        data_from=None,
        data_until=None,
        skill=Skill(10, 0.1, 0.5, 0.05, 0.3),
        false_alarms_per_day=None,
        endpoint_days=0.0,
        incidents={},
        parent=None,
        arrays_sha256=checksum(arrays),
    )
