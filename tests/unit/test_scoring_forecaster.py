import numpy as np
import numpy.typing as npt
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss

from scoring.calibration import Calibration, fit_calibration, fit_groups
from scoring.domain import MAX_OUTSIDE, domain_of
from scoring.features import DIRECTIONS, NAMES
from scoring.forecaster import Forecaster, Weighted, blended
from scoring.forest import Forest
from scoring.level import Level
from scoring.linear import CLIP_SD
from scoring.metrics import average_precision, caught, lead_s, skill
from scoring.training import Shape, export, fit_classifier, fit_linear, fit_logistic, refitted

Data = tuple[npt.NDArray[np.float64], npt.NDArray[np.int8]]


def forecaster(*models: Forest | Level) -> Forecaster:
    """Models of equal weight."""
    x, y = draw(20)
    return Forecaster(tuple(Weighted(1 / len(models), model) for model in models), Calibration(), domain_of(x, y))


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


def test_what_is_fitted_anew_has_the_same_shape_and_the_trees_that_helped() -> None:
    shape = Shape(leaves=4, smallest_leaf=300)
    stopped = fit_classifier(*draw(1), *draw(2, 1000), seed=1, shape=shape)
    again = refitted(stopped, *draw(3))
    assert again.n_iter_ == stopped.n_iter_ - 12
    for fitted in (stopped, again):
        trees = [stage[0].nodes for stage in fitted._predictors]
        assert max(int(nodes["is_leaf"].sum()) for nodes in trees) == 4
        assert min(int(nodes["count"].min()) for nodes in trees) >= 300
    x, _ = draw(4)
    assert not np.array_equal(export(again).log_odds(x), export(stopped).log_odds(x))


def test_rows_do_not_depend_on_their_company(forest: Forest) -> None:
    x, _ = draw(6, 1100)
    assert forest.log_odds(x)[700:705].tolist() == forest.log_odds(x[700:705]).tolist()
    assert forecaster(forest).risks(x[:0]).shape == (0,)


def test_a_blend_is_the_weighted_sum_of_both(forest: Forest) -> None:
    other = export(fit_classifier(*draw(7, 2000), *draw(8, 500), seed=2))
    x, _ = draw(9, 400)
    fresh, known = forecaster(forest), forecaster(other)
    mixed = Forecaster(blended(fresh, known, 0.3), Calibration(), fresh.domain).log_odds(x)
    assert mixed == pytest.approx(0.3 * forest.log_odds(x) + 0.7 * other.log_odds(x), abs=1e-9)
    assert [part.model for part in blended(fresh, known, 1.0)] == [forest]
    with pytest.raises(ValueError, match="weight = 2"):
        blended(fresh, known, 2)


def test_the_challenger_is_scikit_learns_logistic_regression() -> None:
    x, y = draw(12)
    x[:300] *= 40  # beyond the clipping
    linear = fit_linear(x, y, seed=3)
    z = linear.standardised(x)
    assert np.abs(z).max() == CLIP_SD
    known = fit_logistic(z, y, seed=3).predict_proba(z)[:, 1]
    assert np.abs(Calibration().risk(linear.log_odds(x)) - known).max() < 1e-6


def test_the_level_rule_is_the_log_of_the_highest_multiple() -> None:
    row = dict.fromkeys(NAMES, 0.0) | {"failure_rate_15s": 0.2, "limited_rate_60s": 0.3, "latency_shift_15s": 1.0}
    by_rate = Level().log_odds(np.array([[row[name] for name in NAMES]]))
    by_latency = Level().log_odds(np.array([[(row | {"latency_shift_15s": 3.0})[name] for name in NAMES]]))
    assert by_rate == pytest.approx([np.log(3.0)])
    assert by_latency == pytest.approx([3.0 - np.log(2.5)])


def test_outside_of_what_training_has_seen_there_is_no_forecast() -> None:
    x, y = draw(13)
    domain = domain_of(x, y)
    free = [i for i, direction in enumerate(DIRECTIONS) if not direction and not NAMES[i].startswith("attempts")]
    rising = [i for i, direction in enumerate(DIRECTIONS) if direction]
    rows = np.tile(domain.normal, (4, 1))
    rows[1][free[: MAX_OUTSIDE + 1]] = 1e3
    rows[2][free[:MAX_OUTSIDE]] = 1e3
    rows[3][rising] = 1e3  # worse than anything known is still bad, not unknown
    assert domain.covers(rows).tolist() == [True, False, True, True]
    assert domain.covers(x).mean() > 0.99
    far = domain_of(x + 1e3, y)
    assert not far.covers(rows[:1])[0]
    assert far.with_(domain).covers(rows[:1])[0]


def test_calibration_is_drawn_towards_what_was_known() -> None:
    x, y = draw(14)
    log_odds = 1.5 * x[:, 0] + np.maximum(x[:, 3], 0) - 3
    known = Calibration(2.0, -4.0)
    free = fit_calibration(log_odds, y)
    close, far = (fit_calibration(log_odds, y, prior=known, prior_events=n) for n in (1e-3, 1e6))
    assert (close.slope, close.intercept) == pytest.approx((free.slope, free.intercept), abs=0.02)
    assert (far.slope, far.intercept) == pytest.approx((known.slope, known.intercept), rel=0.01)
    # Rows of one incident are one event: the more rows an event has, the less they move.
    one, sixty = (fit_calibration(log_odds[:500], y[:500], prior=known, rows_per_event=n) for n in (1.0, 60.0))
    assert abs(sixty.intercept - known.intercept) < abs(one.intercept - known.intercept)


def test_groups_are_calibrated_apart_and_thin_ones_stay_with_the_rest() -> None:
    """An endpoint group whose alarms come true half as often gets half the risk, once its evidence says so."""
    rng = np.random.default_rng(15)
    log_odds = rng.normal(-2, 1.5, 8000)
    groups = ["good", "bad", "bad", "bad"] * 2000
    shifted = log_odds + np.where(np.array(groups) == "good", -1.5, 0.5)
    y = (rng.random(8000) < Calibration().risk(shifted)).astype(np.int8)
    pooled = fit_calibration(log_odds, y)
    found = fit_groups(np.append(log_odds, 0.0), np.append(y, np.int8(1)), [*groups, "new"], pooled, 1.0)
    assert found["good"].intercept < pooled.intercept - 0.5
    assert found["bad"].intercept > pooled.intercept
    assert found["new"].intercept == pytest.approx(pooled.intercept, abs=0.1)
    apart = forecaster(Level())
    grouped = Forecaster(apart.parts, pooled, apart.domain, found)
    x, _ = draw(16, 3)
    risks = grouped.risks(x, ["good", "bad", "unheard of"])
    assert risks.tolist() == [found["good"].risk(grouped.log_odds(x))[0], found["bad"].risk(grouped.log_odds(x))[1],
                              pooled.risk(grouped.log_odds(x))[2]]  # fmt: skip


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
