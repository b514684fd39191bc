import numpy as np
import numpy.typing as npt
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss

from scoring.features import DIRECTIONS, NAMES
from scoring.forecaster import Calibration, Forecaster, Forest
from scoring.metrics import average_precision, caught, lead_s, skill
from scoring.training import export, fit_calibration, fit_classifier

Data = tuple[npt.NDArray[np.float64], npt.NDArray[np.int8]]


def draw(seed: int, rows: int = 4000) -> Data:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, len(NAMES)))
    odds = 1.5 * x[:, 0] + np.maximum(x[:, 3], 0) - 3
    return x, (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int8)


@pytest.fixture(scope="module")
def classifier() -> HistGradientBoostingClassifier:
    return fit_classifier(*draw(1), *draw(2, 1000), seed=1)


@pytest.fixture(scope="module")
def forest(classifier: HistGradientBoostingClassifier) -> Forest:
    return export(classifier)


def test_numpy_walks_the_trees_as_scikit_learn_does(classifier: HistGradientBoostingClassifier, forest: Forest) -> None:
    x, _ = draw(3, 1500)
    # Values that lie exactly on thresholds, and beyond everything training has seen.
    x[:200, 0] = np.resize(forest.threshold[:, 0], 200)
    x[200:220] = 1e12
    x[220:240] = -1e12
    raw = 1 / (1 + np.exp(-forest.log_odds(x)))
    assert np.abs(raw - classifier.predict_proba(x)[:, 1]).max() < 1e-6


def test_missing_values_go_where_training_sent_them() -> None:
    x, y = draw(4)
    x[np.random.default_rng(4).random(x.shape) < 0.2] = np.nan
    fitted = fit_classifier(x, y, x[:1000], y[:1000], seed=4)
    walked = 1 / (1 + np.exp(-export(fitted).log_odds(x)))
    assert np.abs(walked - fitted.predict_proba(x)[:, 1]).max() < 1e-6


def test_more_of_a_rising_feature_never_lowers_the_risk(forest: Forest) -> None:
    x, _ = draw(5, 300)
    for column, direction in enumerate(DIRECTIONS):
        more = x.copy()
        more[:, column] += 0.7
        if direction:
            assert (forest.log_odds(more) >= forest.log_odds(x) - 1e-12).all()


def test_rows_do_not_depend_on_their_company(forest: Forest) -> None:
    x, _ = draw(6, 1100)
    assert forest.log_odds(x)[700:705].tolist() == forest.log_odds(x[700:705]).tolist()
    assert Forecaster(forest, Calibration()).risks(x[:0]).shape == (0,)


def test_a_blend_is_the_weighted_sum_of_both(forest: Forest) -> None:
    other = export(fit_classifier(*draw(7, 2000), *draw(8, 500), seed=2))
    x, _ = draw(9, 400)
    blended = forest.blended(other, 0.3).log_odds(x)
    assert blended == pytest.approx(0.3 * forest.log_odds(x) + 0.7 * other.log_odds(x), abs=1e-9)
    with pytest.raises(ValueError, match="weight = 2"):
        forest.blended(other, 2)


def test_calibration_is_the_logistic_regression_on_log_odds(forest: Forest) -> None:
    x, y = draw(10)
    log_odds = 2 * forest.log_odds(x) + 1
    own = fit_calibration(log_odds, y)
    known = LogisticRegression(C=np.inf).fit(log_odds[:, None], y)
    assert own.slope == pytest.approx(known.coef_[0, 0], rel=0.01)
    assert own.intercept == pytest.approx(known.intercept_[0], rel=0.02)
    assert own.risk(log_odds).mean() == pytest.approx(y.mean(), rel=0.01)


def test_calibration_refuses_what_it_cannot_learn_from() -> None:
    with pytest.raises(ValueError, match="0 positives and 3 negatives"):
        fit_calibration(np.array([1.0, 2.0, 3.0]), np.zeros(3, dtype=np.int8))
    with pytest.raises(ValueError, match="higher log-odds do not mean more risk"):
        fit_calibration(np.linspace(-1, 1, 100), (np.linspace(-1, 1, 100) < 0.1).astype(np.int8))


def test_figures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(11)
    y = (rng.random(500) < 0.2).astype(np.int8)
    risk = np.round(np.clip(y * np.float64(0.3) + 0.5 * rng.random(500), 0, 1), 2).astype(np.float64)  # rounded: ties
    found = skill(y, risk)
    assert found.pr_auc == pytest.approx(average_precision_score(y, risk))
    assert found.brier == pytest.approx(brier_score_loss(y, risk))
    assert found.brier_skill == pytest.approx(1 - brier_score_loss(y, risk) / (y.mean() * (1 - y.mean())))


def test_figures_without_evidence_are_none() -> None:
    nothing = skill(np.empty(0, dtype=np.int8), np.empty(0))
    assert (nothing.pr_auc, nothing.brier, nothing.brier_skill) == (None, None, None)
    assert average_precision(np.zeros(3, dtype=np.int8), np.ones(3)) is None
    assert caught([]).early_recall is None


def test_lead_counts_from_the_alarm_to_the_harm() -> None:
    time = np.arange(0.0, 100.0)
    risk = np.where(time >= 40, 0.8, 0.1)
    assert lead_s(time, risk, 0.5, begins=30, harmful=70) == 30
    assert lead_s(time, risk, 0.5, begins=50, harmful=70) == 20
    assert lead_s(time, risk, 0.5, begins=10, harmful=40) is None
    found = caught([(30.0, 40.0), (None, 5.0), (10.0, 20.0)])
    assert found.early_recall == pytest.approx(2 / 3)
    assert (found.median_lead_s, found.median_possible_s) == (20, 20)
