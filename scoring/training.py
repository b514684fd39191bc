"""Fitting: histogram gradient boosting and logistic regression, exported to plain arrays.

The rule of this file: it alone imports scikit-learn, and it alone touches the private tree arrays of a fitted model.
Classes are not reweighted: that would distort the probabilities; rare positives are met by log loss and early stopping
on held-out data instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from scoring.features import DIRECTIONS
from scoring.forest import Forest
from scoring.linear import Linear

_Floats = npt.NDArray[np.float64]
_Labels = npt.NDArray[np.int8]

_MAX_TREES = 160
_PATIENCE = 12
_FEWEST_TREES = 5
# Rare kinds of trouble, a hang say, are some hundred rows in half a million: larger leaves would blend them.
_LARGEST_LEAF = 100
_RIDGE = 0.1
_MAX_STEPS = 300


@dataclass(frozen=True, slots=True)
class Shape:
    """What one tree may be: its leaves, the rows of its smallest leaf (by default a three-hundredth of all, 20 to 100),
    and the share in (0, 1] of the features that each split chooses among.
    """

    leaves: int = 24
    smallest_leaf: int | None = None
    features_per_split: float = 1.0


def fit_classifier(
    x: _Floats,
    y: _Labels,
    x_val: _Floats,
    y_val: _Labels,
    seed: int,
    directions: Sequence[int] = DIRECTIONS,
    shape: Shape = Shape(),
) -> HistGradientBoostingClassifier:
    """Fit on (x, y) and stop when the loss on the validation part stops falling.

    `x` is n × features, one of `directions` for each column: more of a feature with direction 1 never lowers the risk.
    They are those of `scoring.features` unless told otherwise.
    """
    classifier = HistGradientBoostingClassifier(
        learning_rate=0.1,
        max_iter=_MAX_TREES,
        max_leaf_nodes=shape.leaves,
        max_depth=8,
        min_samples_leaf=shape.smallest_leaf or min(_LARGEST_LEAF, max(20, len(x) // 300)),
        max_features=shape.features_per_split,
        l2_regularization=5.0,
        monotonic_cst=np.array(directions),
        early_stopping=True,
        n_iter_no_change=_PATIENCE,
        random_state=seed,
    )
    classifier.fit(x, y, X_val=x_val, y_val=y_val)
    return classifier


def refitted(stopped: HistGradientBoostingClassifier, x: _Floats, y: _Labels) -> HistGradientBoostingClassifier:
    """Fit the same anew on other rows, with as many trees as lowered the loss of its validation part; five at least."""
    trees = max(_FEWEST_TREES, stopped.n_iter_ - _PATIENCE)
    again: HistGradientBoostingClassifier = clone(stopped).set_params(max_iter=trees, early_stopping=False)
    return again.fit(x, y)


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


def fit_linear(x: _Floats, y: _Labels, seed: int) -> Linear:
    """Fit logistic regression on standardised, clipped features (n × features). Raises ValueError for one class."""
    center = np.median(x, axis=0)
    # A feature that hardly ever moves has no spread between its quantiles; its standard deviation stands in.
    low, high = np.quantile(x, (0.16, 0.84), axis=0)
    scale = np.maximum((high - low) / 2, np.maximum(0.25 * x.std(axis=0), 1e-3))
    frame = Linear(center, scale, np.zeros(x.shape[1]), 0.0)
    fitted = fit_logistic(frame.standardised(x), y, seed)
    return Linear(center, scale, fitted.coef_[0].astype(np.float64), float(fitted.intercept_[0]))


def fit_logistic(z: _Floats, y: _Labels, seed: int) -> LogisticRegression:
    """Fit scikit-learn's logistic regression on standardised features. Raises ValueError for one class."""
    return LogisticRegression(C=_RIDGE, max_iter=_MAX_STEPS, random_state=seed).fit(z, y)
