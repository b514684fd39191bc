"""Explanations of forecasts add up and point at what was changed (F-09)."""

import numpy as np
import numpy.typing as npt
import pytest

from scoring.calibration import Calibration
from scoring.domain import domain_of
from scoring.explain import contributions
from scoring.features import FEATURES, NAMES, Group
from scoring.forecaster import Forecaster, Weighted
from scoring.training import export, fit_classifier, fit_linear

_Data = tuple[npt.NDArray[np.float64], npt.NDArray[np.int8]]


def draw(seed: int) -> _Data:
    """Failures, and failures together with rate limits, are what matters."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4000, len(NAMES)))
    failures, limits = x[:, NAMES.index("failures_60s")], x[:, NAMES.index("limited_60s")]
    odds = 1.5 * failures + np.maximum(failures, 0) * np.maximum(limits, 0) - 2
    return x, (rng.random(4000) < 1 / (1 + np.exp(-odds))).astype(np.int8)


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    x, y = draw(1)
    parts = (Weighted(0.7, export(fit_classifier(x, y, *draw(2), seed=1))), Weighted(0.3, fit_linear(x, y, seed=1)))
    return Forecaster(parts, Calibration(), domain_of(x, y))


def test_contributions_add_up_to_the_distance_from_normal(forecaster: Forecaster) -> None:
    x, _ = draw(3)
    for row in x[:20]:
        explained = sum(part.log_odds for part in contributions(forecaster, row))
        both = forecaster.log_odds(np.stack([row, forecaster.domain.normal]))
        assert explained == pytest.approx(both[0] - both[1], abs=1e-9)


def test_the_group_that_was_changed_comes_first_with_its_figures(forecaster: Forecaster) -> None:
    row = forecaster.domain.normal.copy()
    row[NAMES.index("failures_60s")] = 3.0
    first, *others = contributions(forecaster, row)
    assert first.group == Group.FAILURES.value
    assert first.log_odds > 1
    assert (first.figures[0].name, first.figures[0].value) == ("failures_60s", 3.0)
    assert first.figures[0].normal == forecaster.domain.normal[NAMES.index("failures_60s")]
    assert [part.log_odds for part in others] == pytest.approx([0.0] * len(others), abs=1e-9)


def test_what_two_groups_do_together_is_shared_between_them(forecaster: Forecaster) -> None:
    row = forecaster.domain.normal.copy()
    row[NAMES.index("failures_60s")] = row[NAMES.index("limited_60s")] = 2.0
    found = {part.group: part.log_odds for part in contributions(forecaster, row)}
    assert found[Group.FAILURES.value] > found[Group.RATE_LIMITS.value] > 0.2


def test_every_feature_belongs_to_one_group() -> None:
    assert {feature.group for feature in FEATURES} == set(Group)
