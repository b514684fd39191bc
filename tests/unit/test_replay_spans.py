"""Which hours are replayed, and that their weights add up to all of them (F-16)."""

from analytics.replay import Hour
from sim.replay.spans import choose_spans

SINCE = 1_000_000.0


def hours(n: int, eventful: set[int]) -> list[Hour]:
    return [Hour(number, 100, number in eventful) for number in range(n)]


def test_a_short_history_is_replayed_whole() -> None:
    chosen = choose_spans(hours(10, {3}), SINCE, SINCE + 9.5 * 3600, most=48)
    assert [span.begin for span in chosen.spans] == [SINCE + 3600 * i for i in range(10)]
    assert chosen.spans[-1].end == SINCE + 9.5 * 3600
    assert {span.stands_for for span in chosen.spans} == {1.0}
    assert [span.warm_s for span in chosen.spans[:2]] == [0.0, 1800.0]


def test_eventful_hours_come_first_and_quiet_ones_stand_for_many() -> None:
    chosen = choose_spans(hours(720, set(range(100, 120))), SINCE, SINCE + 720 * 3600, most=48)
    assert len(chosen.spans) == 48
    assert sum(chosen.eventful) == 20
    assert sum(span.stands_for for span in chosen.spans) == 720
    assert {
        span.stands_for for span, is_eventful in zip(chosen.spans, chosen.eventful, strict=True) if is_eventful
    } == {1}


def test_quiet_hours_are_kept_among_many_eventful_ones() -> None:
    """Needless moves happen in quiet hours, so that they are never left out."""
    chosen = choose_spans(hours(200, set(range(150))), SINCE, SINCE + 200 * 3600, most=20)
    assert sum(chosen.eventful) == 14
    assert len(chosen.spans) == 20
    assert abs(sum(span.stands_for for span in chosen.spans) - 200) < 1e-9


def test_the_same_hours_are_chosen_again() -> None:
    first, second = (choose_spans(hours(300, {7, 9}), SINCE, SINCE + 300 * 3600, most=12) for _ in range(2))
    assert first == second
