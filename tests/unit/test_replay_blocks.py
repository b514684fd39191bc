"""Stretches between changes, worked out on records whose changes are known (F-16)."""

import numpy as np
import pytest

from sim.replay.blocks import count_blocks, level_blocks


def counts(*stretches: tuple[int, int, float], seed: int = 3) -> np.ndarray:
    """One cell a second: (seconds, attempts per second, chance to fail)."""
    rng = np.random.default_rng(seed)
    failed = np.concatenate([rng.binomial(n, chance, seconds) for seconds, n, chance in stretches])
    tried = np.concatenate([np.full(seconds, n) for seconds, n, _ in stretches])
    return np.stack([tried - failed, failed], axis=1).astype(np.float64)


def test_an_outage_begins_and_ends_where_the_evidence_changes() -> None:
    """F-16: no blur, which would show the outage before it began."""
    starts = count_blocks(counts((500, 4, 0.0), (60, 4, 1.0), (500, 4, 0.0)))
    assert starts.tolist() == [0, 500, 560]


def test_noise_is_one_stretch() -> None:
    assert count_blocks(counts((2000, 4, 0.005))).tolist() == [0]


def test_a_change_of_the_kind_of_failure_is_a_change() -> None:
    limited, broken = np.tile([0.0, 5.0, 0.0], (40, 1)), np.tile([0.0, 0.0, 5.0], (40, 1))
    assert count_blocks(np.concatenate([limited, broken])).tolist() == [0, 40]


@pytest.mark.parametrize("cells", [0, 1])
def test_a_record_too_short_to_cut(cells: int) -> None:
    assert count_blocks(np.ones((cells, 2))).tolist() == [0] * cells
    assert level_blocks(np.ones(cells), np.ones(cells)).tolist() == [0] * cells


def test_a_level_that_steps_is_cut_there_and_a_ramp_is_followed() -> None:
    rng = np.random.default_rng(5)
    level = np.concatenate([np.zeros(300), np.linspace(0, 1.8, 240), np.zeros(300)]) + rng.normal(0, 0.1, 840)
    starts = level_blocks(level, np.full(840, 100.0))
    assert starts[0] == 0
    assert 300 <= starts[1] <= 330
    assert abs(starts[-1] - 540) <= 1
    assert len(starts) > 5


def test_the_pruned_search_finds_what_the_full_one_finds() -> None:
    """PELT may drop only starts that can never win: compared with all of them on small records."""
    for seed in range(20):
        record = counts((25, 2, 0.05), (10, 2, 0.7), (25, 2, 0.05), seed=seed)
        assert count_blocks(record).tolist() == exhaustive(record)


def exhaustive(record: np.ndarray) -> list[int]:
    n = len(record)
    price = 4 - np.log(73.53 * 0.01 * n**-0.478)
    best, last = [0.0], []
    for end in range(1, n + 1):
        values = [best[start] + fitness(record[start:end].sum(axis=0)) - price for start in range(end)]
        last.append(int(np.argmax(values)))
        best.append(max(values))
    starts, end = [], n
    while end:
        starts.append(last[end - 1])
        end = starts[-1]
    return starts[::-1]


def fitness(seen: np.ndarray) -> float:
    share = seen[seen > 0] / seen.sum()
    return float((seen[seen > 0] * np.log(share)).sum())
