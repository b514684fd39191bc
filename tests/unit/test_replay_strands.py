"""What is known of each second, and what a draw makes of the rest (F-16)."""

import numpy as np

from sim.replay.strands import Strand, count_strand, draw_levels, draw_rates, level_strand, seen

NORMAL = np.array([0.0, 0.01])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def attempts(*stretches: tuple[int, int, int]) -> Strand:
    """Four attempts a second in [first, last), each ending in the given class."""
    second = np.concatenate([np.repeat(np.arange(first, last), 4) for first, last, _ in stretches])
    ends = np.concatenate([np.full(4 * (last - first), kind) for first, last, kind in stretches])
    return count_strand(second, ends, 3)


def test_rates_are_those_of_the_stretch_and_of_no_second_beside_it() -> None:
    rates = draw_rates(attempts((0, 100, 0), (100, 160, 2), (160, 300, 0)), NORMAL, 300, rng())
    assert rates[:100].max() < 0.05
    assert rates[100:160, 1].min() > 0.9
    assert rates[160:].max() < 0.05
    assert rates[100:160, 0].max() < 0.05


def test_a_gap_keeps_the_change_somewhere_within() -> None:
    """F-16: nobody looked from 100 to 160, so that the worlds differ in when the outage began, and only in that."""
    strand = attempts((0, 100, 0), (160, 260, 2))
    begins = {int(np.argmax(draw_rates(strand, NORMAL, 260, rng(seed))[:, 1] > 0.5)) for seed in range(40)}
    assert min(begins) >= 100
    assert max(begins) <= 160
    assert max(begins) - min(begins) > 30


def test_a_state_last_seen_long_ago_gives_way_to_the_good_days() -> None:
    """An outage seen for ten seconds and never looked at again does not last for an hour in every world."""
    strand = attempts((0, 10, 2))
    lengths = [int((draw_rates(strand, NORMAL, 3600, rng(seed))[:, 1] > 0.5).sum()) for seed in range(60)]
    assert min(lengths) < 100
    assert 150 < np.mean(lengths) < 600
    assert max(lengths) < 3600


def test_an_endpoint_nobody_called_is_as_on_its_good_days() -> None:
    nothing = count_strand(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 3)
    assert draw_rates(nothing, NORMAL, 50, rng()).tolist() == [NORMAL.tolist()] * 50
    levels = level_strand(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0))
    assert draw_levels(levels, 50, rng()).tolist() == [1.0] * 50


def test_more_evidence_leaves_less_doubt() -> None:
    few, many = (count_strand(np.repeat(np.arange(3), n), np.tile([0, 0, 2, 0], 3 * n // 4), 3) for n in (4, 400))
    spread = [np.std([draw_rates(one, NORMAL, 3, rng(seed))[0, 1] for seed in range(80)]) for one in (few, many)]
    assert spread[1] < spread[0] / 3


def test_probes_and_streams_tell_one_level() -> None:
    """Kinds of evidence weigh by how much they scatter."""
    second = np.repeat(np.arange(100), 2)
    level = np.tile([np.log(3.0), 0.0], 100)
    variance = np.tile([0.01, 10.0], 100)
    drawn = draw_levels(level_strand(second, level, variance), 100, rng())
    assert np.allclose(drawn, 3.0, rtol=0.1)


def test_seconds_near_evidence_are_seen() -> None:
    assert np.flatnonzero(seen(np.array([100]), 300)).tolist() == list(range(70, 131))
    assert not seen(np.zeros(0, dtype=np.int64), 10).any()
