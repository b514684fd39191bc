"""Fitting: a histogram gradient boosting classifier and its calibration, exported to plain arrays.

The rule of this file: it alone imports scikit-learn, and it alone touches the private tree arrays of a fitted model.
Classes are not reweighted: that would distort the probabilities; rare positives are met by log loss and early stopping
on held-out data instead.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier

from scoring.features import DIRECTIONS
from scoring.forecaster import Calibration, Forest

_Floats = npt.NDArray[np.float64]
_Labels = npt.NDArray[np.int8]

MAX_TREES = 160
_NEWTON_STEPS = 50


def fit_classifier(x: _Floats, y: _Labels, x_val: _Floats, y_val: _Labels, seed: int) -> HistGradientBoostingClassifier:
    """Fit on (x, y) and stop when the loss on the validation part stops falling.

    `x` is n × features with the columns of `scoring.features`; more of a feature with direction 1 never lowers the
    risk.
    """
    classifier = HistGradientBoostingClassifier(
        learning_rate=0.1,
        max_iter=MAX_TREES,
        max_leaf_nodes=24,
        max_depth=8,
        min_samples_leaf=min(800, max(20, len(x) // 300)),
        l2_regularization=5.0,
        monotonic_cst=np.array(DIRECTIONS),
        early_stopping=True,
        n_iter_no_change=12,
        random_state=seed,
    )
    classifier.fit(x, y, X_val=x_val, y_val=y_val)
    return classifier


def export(classifier: HistGradientBoostingClassifier) -> Forest:
    """Turn a fitted binary classifier without categorical features into arrays."""
    trees: list[npt.NDArray[Any]] = [stage[0].nodes for stage in classifier._predictors]
    shape = (len(trees), max(len(nodes) for nodes in trees))
    feature, left, right = (np.zeros(shape, dtype=np.int32) for _ in range(3))
    threshold, value = np.zeros(shape), np.zeros(shape)
    missing_left = np.zeros(shape, dtype=np.bool_)
    for tree, nodes in enumerate(trees):
        count, leaf, itself = len(nodes), nodes["is_leaf"].astype(np.bool_), np.arange(len(nodes))
        feature[tree, :count] = np.where(leaf, 0, nodes["feature_idx"])
        threshold[tree, :count] = np.where(leaf, 0.0, nodes["num_threshold"])
        missing_left[tree, :count] = nodes["missing_go_to_left"].astype(np.bool_) & ~leaf
        left[tree, :count] = np.where(leaf, itself, nodes["left"])
        right[tree, :count] = np.where(leaf, itself, nodes["right"])
        value[tree, :count] = np.where(leaf, nodes["value"], 0.0)
    return Forest(
        feature=feature,
        threshold=threshold,
        missing_left=missing_left,
        left=left,
        right=right,
        value=value,
        depth=max(int(nodes["depth"].max()) for nodes in trees),
        baseline=float(np.ravel(classifier._baseline_prediction)[0]),
    )


def fit_calibration(log_odds: _Floats, y: _Labels) -> Calibration:
    """Fit Platt scaling by Newton's method, with Platt's smoothed targets.

    Raises ValueError when one class is missing or higher log-odds do not mean more risk.
    """
    positives = int(y.sum())
    negatives = len(y) - positives
    if not positives or not negatives:
        raise ValueError(f"calibration needs both classes, got {positives} positives and {negatives} negatives")
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    design = np.stack([log_odds, np.ones_like(log_odds)], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(_NEWTON_STEPS):
        risk = Calibration(float(weights[0]), float(weights[1])).risk(log_odds)
        gradient = design.T @ (risk - target)
        curvature = (design * (risk * (1 - risk))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if float(np.abs(step).max()) < 1e-9:
            break
    if not (np.isfinite(weights).all() and weights[0] > 0):
        raise ValueError(f"calibration found slope {weights[0]:.3g}: higher log-odds do not mean more risk here")
    return Calibration(float(weights[0]), float(weights[1]))
