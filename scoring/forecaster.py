"""The forecaster: what a model says in log-odds, calibrated for the endpoint's group, within what it was trained on.

The rule of this file: everything that scores (trees, logistic regression, the level rule) is one `Scores`, so that the
gate, the registry and the scoring process treat champions and challengers alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from scoring.calibration import Calibration, sigmoid
from scoring.domain import Domain

_Floats = npt.NDArray[np.float64]


class Scores(Protocol):
    """Something that turns features into raw log-odds."""

    def log_odds(self, x: _Floats) -> _Floats:
        """Return one value per row of `x` (n × features, float64), higher for more risk."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """A model's share in a blend, in [0, 1]."""

    weight: float
    model: Scores


def weighted_sum(parts: Sequence[Weighted], x: _Floats) -> _Floats:
    """Return the log-odds of each row of `x` (n × features), those of all parts added by weight."""
    total = np.zeros(len(x))
    if len(x):
        for part in parts:
            total += part.weight * part.model.log_odds(x)
    return total


@dataclass(frozen=True, slots=True)
class Forecaster:
    """From features to the calibrated probability of being degraded within the horizon.

    Log-odds of the parts are added by weight (one part of weight 1 for an unblended model). `groups` holds the
    calibrations of endpoint groups (providers); all others go by `calibration`.
    """

    parts: tuple[Weighted, ...]
    calibration: Calibration
    domain: Domain
    groups: Mapping[str, Calibration] = field(default_factory=dict)

    def log_odds(self, x: _Floats) -> _Floats:
        """Return the blended log-odds of each row of `x` (n × features), before calibration."""
        return weighted_sum(self.parts, x)

    def risks(self, x: _Floats, groups: Sequence[str] = ()) -> _Floats:
        """Return one probability per row of `x` (n × features); `groups` names each row's group, none when empty."""
        log_odds = self.log_odds(x)
        if not groups or not self.groups:
            return self.calibration.risk(log_odds)
        chosen = [self.groups.get(group, self.calibration) for group in groups]
        slope = np.array([calibration.slope for calibration in chosen])
        return sigmoid(slope * log_odds + np.array([calibration.intercept for calibration in chosen]))


def blended(fresh: Forecaster, known: Forecaster, weight: float) -> tuple[Weighted, ...]:
    """Return the parts whose log-odds are `weight` times those of `fresh` plus (1 - weight) times those of `known`.

    Raises ValueError for a weight outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight = {weight!r}: expected a share in [0, 1]")
    scaled = [
        Weighted(share * part.weight, part.model)
        for share, own in ((weight, fresh), (1 - weight, known))
        for part in own.parts
    ]
    return tuple(part for part in scaled if part.weight > 0)
