"""The training job: history → candidate → comparison with the champion → promotion, or the reason why not.

The rule of this file: the champion stays unless the candidate was at least as good on later data that neither has been
fitted on. The candidate is a blend: the more incidents of its own the history has, the less of the champion's trees
remain. The pointer is the last thing written, so a job that is interrupted changes nothing.
"""

import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from analytics.store import connect
from analytics.training import TrainingRows, training_rows
from scoring.alarms import choose_threshold, endpoint_days, false_alarms
from scoring.artifact import ArtifactError, Manifest, Model, checksum, code_version, libraries
from scoring.calibration import Calibration, fit_calibration
from scoring.domain import domain_of
from scoring.features import FEATURE_SET, NAMES
from scoring.forecaster import Forecaster, Weighted, blended
from scoring.history_rows import Part, split
from scoring.labels import HORIZON_S
from scoring.metrics import Skill, skill
from scoring.packing import pack
from scoring.registry import Registry
from scoring.training import export, fit_classifier

SHARES = (0.5, 0.25, 0.25)
MAX_FALSE_ALARMS_PER_DAY = 3.0
_MIN_ROWS = 1_000
_MIN_INCIDENTS = 3
# With this many own incidents, history and the champion's trees weigh the same.
_HALF_WEIGHT_INCIDENTS = 10
# A threshold chosen on less quiet time than this would be luck; the champion's is kept.
_MIN_THRESHOLD_DAYS = 1.0


class Verdict(StrEnum):
    """How a run of the job ended."""

    PROMOTED = "promoted"
    KEPT = "kept"
    NOT_ENOUGH = "not_enough_evidence"


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What the job did and why.

    `rows` and `incidents` are the usable ones of each part: fitted on, calibrated on, compared on. `candidate` and
    `champion` are the figures on the last part (None when it did not come to a comparison), `version` what is served
    from now on, `candidate_version` what was registered ("" if nothing).
    """

    verdict: Verdict
    reason: str
    rows: tuple[int, ...]
    incidents: tuple[int, ...]
    version: str
    candidate_version: str
    candidate: Skill | None
    champion: Skill | None


@dataclass(frozen=True, slots=True)
class _Candidate:
    forecaster: Forecaster
    threshold: float
    weight: float


def train(data_dir: Path, *, since: float, until: float, seed: int = 0, horizon_s: float = HORIZON_S) -> TrainReport:
    """Train on the history of [since, until) (unix seconds) under `data_dir` and promote the result if it is better.

    Raises HistoryError when the history cannot be read, ArtifactError when not even the shipped prior can be loaded,
    and OSError when the disk refuses. The serving model is then as it was.
    """
    registry = Registry(data_dir)
    loaded = registry.champion()
    if loaded.model is None:
        raise ArtifactError(data_dir, f"no model to compare with: {loaded.problem}")
    champion = loaded.model
    parts = split(_rows(data_dir / "history", since, until, horizon_s), SHARES, horizon_s)
    fit, calibrate, compare = parts
    rows = tuple(int(part.usable.sum()) for part in parts)
    incidents = tuple(part.incidents for part in parts)

    def report(
        verdict: Verdict, reason: str, version: str = "", own: Skill | None = None, other: Skill | None = None
    ) -> TrainReport:
        serving = version if verdict is Verdict.PROMOTED else champion.manifest.version
        return TrainReport(verdict, reason, rows, incidents, serving, version, own, other)

    lacking = _lacking(rows, incidents)
    if lacking:
        return report(Verdict.NOT_ENOUGH, lacking)
    try:
        candidate = _fit(fit, calibrate, champion, incidents[0], seed)
    except ValueError as error:
        return report(Verdict.KEPT, f"no candidate: {error}")
    x, y = compare.labelled
    own, other = skill(y, candidate.forecaster.risks(x)), skill(y, champion.forecaster.risks(x))
    arrays = pack(candidate.forecaster)
    manifest = _manifest(candidate, arrays, champion, compare, own, sum(incidents), seed, (since, until), horizon_s)
    registry.register(arrays, manifest)
    worse = _worse(own, other)
    if worse:
        return report(Verdict.KEPT, worse, manifest.version, own, other)
    registry.promote(manifest.version)
    return report(Verdict.PROMOTED, "as good or better in every figure", manifest.version, own, other)


def _rows(history: Path, since: float, until: float, horizon_s: float) -> TrainingRows:
    connection = connect(history)
    try:
        return training_rows(connection, horizon_s, since, until, FEATURE_SET)
    finally:
        connection.close()


def _lacking(rows: tuple[int, ...], incidents: tuple[int, ...]) -> str:
    enough = sum(rows) >= _MIN_ROWS and incidents[0] >= _MIN_INCIDENTS and min(incidents) >= 1
    if enough:
        return ""
    return (
        f"{sum(rows)} rows and {sum(incidents)} incidents ({', '.join(map(str, incidents))} by part); "
        f"needed: {_MIN_ROWS} rows, {_MIN_INCIDENTS} incidents to fit on, 1 to calibrate on, 1 to compare on"
    )


def _fit(fit: Part, calibrate: Part, champion: Model, incidents: int, seed: int) -> _Candidate:
    x, y = fit.labelled
    x_cal, y_cal = calibrate.labelled
    domain = domain_of(x, y)
    fresh = Forecaster((Weighted(1.0, export(fit_classifier(x, y, x_cal, y_cal, seed))),), Calibration(), domain)
    weight = incidents / (incidents + _HALF_WEIGHT_INCIDENTS)
    parts = blended(fresh, champion.forecaster, weight)
    own = fit_calibration(Forecaster(parts, Calibration(), domain).log_odds(x_cal), y_cal)
    known = champion.forecaster.calibration
    # Recalibrating on little evidence hurts more than it helps: drawn towards the champion's in the same measure.
    calibration = Calibration(
        weight * own.slope + (1 - weight) * known.slope, weight * own.intercept + (1 - weight) * known.intercept
    )
    forecaster = Forecaster(parts, calibration, domain.with_(champion.forecaster.domain))
    series = calibrate.series(forecaster.risks(calibrate.x))
    if endpoint_days(series) < _MIN_THRESHOLD_DAYS:
        return _Candidate(forecaster, champion.manifest.threshold, weight)
    return _Candidate(forecaster, choose_threshold(series, MAX_FALSE_ALARMS_PER_DAY).threshold, weight)


def _worse(own: Skill, other: Skill) -> str:
    """Return why the candidate is not promoted, or nothing."""
    if own.brier_skill is None or own.pr_auc is None or own.brier is None:
        return "the part to compare on has one class only"
    if own.brier_skill <= 0:
        return f"Brier skill {own.brier_skill:.3f}: expected above 0"
    if other.pr_auc is not None and own.pr_auc < other.pr_auc:
        return f"PR-AUC {own.pr_auc:.4f} is below the champion's {other.pr_auc:.4f}"
    if other.brier is not None and own.brier > other.brier:
        return f"Brier score {own.brier:.5f} is above the champion's {other.brier:.5f}"
    return ""


def _manifest(
    candidate: _Candidate,
    arrays: bytes,
    champion: Model,
    compare: Part,
    own: Skill,
    incidents: int,
    seed: int,
    period: tuple[float, float],
    horizon_s: float,
) -> Manifest:
    digest, trained_at = checksum(arrays), time.time()
    series = compare.series(candidate.forecaster.risks(compare.x))
    days = endpoint_days(series)
    alarms = sum(false_alarms(s, candidate.threshold) for s in series)
    first, last = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment)) for moment in period)
    return Manifest(
        version=f"h{int(trained_at)}-{digest[:8]}",
        kind="blend",
        code=code_version(),
        trained_at=trained_at,
        seed=seed,
        feature_set=FEATURE_SET,
        features=NAMES,
        horizon_s=horizon_s,
        threshold=candidate.threshold,
        libraries=libraries(),
        data=(
            f"history from {first} to {last}: {incidents} incidents; own trees weigh {candidate.weight:.2f}, "
            f"those of {champion.manifest.version} the rest; figures are of the last quarter"
        ),
        data_from=period[0],
        data_until=period[1],
        skill=own,
        false_alarms_per_day=alarms / days if days else None,
        endpoint_days=days,
        incidents={},
        parent=champion.manifest.version,
        arrays_sha256=digest,
    )
