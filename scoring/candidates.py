"""From history to candidates: trees and logistic regression blended with the prior, and the level rule, all calibrated.

The rule of this file: the future never informs the past. Models are fitted on the first part, calibrated and given
their threshold on the second; the third is only for the gate.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scoring.alarms import choose_threshold, endpoint_days
from scoring.artifact import Model
from scoring.calibration import Calibration, fit_calibration, fit_groups
from scoring.domain import domain_of
from scoring.forecaster import Forecaster, Scores, Weighted, blended
from scoring.gate import Contender
from scoring.history_rows import Part
from scoring.level import Level
from scoring.training import export, fit_classifier, fit_linear

_Floats = npt.NDArray[np.float64]
# With this many own incidents, own models and the prior weigh the same.
_HALF_WEIGHT_INCIDENTS = 10
# A threshold chosen on less quiet time than this would be luck; the prior's is kept.
_MIN_THRESHOLD_DAYS = 1.0
# Early stopping and calibration look at rows this far apart at least: neighbours say the same.
_MAX_ROWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A forecaster that wants to serve: its kind, its threshold, and the weight of what history taught it."""

    kind: str
    forecaster: Forecaster
    threshold: float
    weight: float
    log_loss: float

    def contender(self, part: Part) -> Contender:
        """Return its risks on a part; 0 where it has no forecast."""
        covered = part.judged & self.forecaster.domain.covers(part.x)
        risk = np.where(covered, self.forecaster.risks(part.x, part.groups), 0.0)
        return Contender(self.kind, risk, self.threshold)


def own_weight(incidents: int) -> float:
    """Return the weight in [0, 1) of own models, given how many incidents they learnt from."""
    return incidents / (incidents + _HALF_WEIGHT_INCIDENTS)


def trees(fit: Part, calibrate: Part, seed: int) -> Scores:
    """Fit boosted trees. Raises ValueError when they find nothing to learn."""
    return export(fit_classifier(*_thinned(fit), *_thinned(calibrate), seed))


def logistic(fit: Part, seed: int) -> Scores:
    """Fit logistic regression. Raises ValueError when there is one class only."""
    return fit_linear(*_thinned(fit), seed)


def candidate_of(
    kind: str, model: Scores, fit: Part, calibrate: Part, prior: Model, max_false_alarms_per_day: float
) -> Candidate:
    """Blend, calibrate and choose the threshold. Raises ValueError when higher log-odds do not mean more risk."""
    known = prior.forecaster
    x_fit, y_fit = _thinned(fit)
    fresh = Forecaster((Weighted(1.0, model),), Calibration(), domain_of(x_fit, y_fit))
    weight = 1.0 if isinstance(model, Level) else own_weight(fit.incidents)
    parts = blended(fresh, known, weight)
    domain = fresh.domain.with_(known.domain)
    uncalibrated = Forecaster(parts, Calibration(), domain)
    x, y = calibrate.labelled
    log_odds = uncalibrated.log_odds(x)
    rows_per_event = max(1.0, float(y.sum()) / max(1, calibrate.incidents))
    # The level rule speaks in other units than the prior: what is known of the prior's calibration says nothing of it.
    known_calibration = None if isinstance(model, Level) else known.calibration
    pooled = fit_calibration(log_odds, y, prior=known_calibration, rows_per_event=rows_per_event)
    groups = [group for group, usable in zip(calibrate.groups, calibrate.usable, strict=True) if usable]
    forecaster = Forecaster(parts, pooled, domain, fit_groups(log_odds, y, groups, pooled, rows_per_event))
    risk = np.clip(forecaster.risks(x, groups), 1e-9, 1 - 1e-9)
    loss = float(-np.mean(np.where(y == 1, np.log(risk), np.log(1 - risk))))
    unset = Candidate(kind, forecaster, prior.manifest.threshold, weight, loss)
    series = calibrate.series(unset.contender(calibrate).risk)
    if endpoint_days(series) < _MIN_THRESHOLD_DAYS and not isinstance(model, Level):
        return unset
    chosen = choose_threshold(series, max_false_alarms_per_day)
    return Candidate(kind, forecaster, chosen.threshold, weight, loss)


def _thinned(part: Part) -> tuple[_Floats, npt.NDArray[np.int8]]:
    """Return the usable rows, every k-th when there are more than a million: seconds of one minute say the same."""
    places = np.flatnonzero(part.usable)
    places = places[:: max(1, -(-len(places) // _MAX_ROWS))]
    return part.x[places], part.y[places]
