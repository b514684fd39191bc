"""When a stream crawls: below its floor over a whole span, whatever its events look like."""

import pytest

from routing.attempts import crawl_floor_tokens_per_s, usual_tokens_per_s
from routing.outcomes import Outcome
from routing.policy import AttemptPolicy
from routing.window import Window
from service.pace import Pace

SPAN_S = 30.0


def _first_crawl(pace: Pace, every_s: float, characters: int, until_s: float = 200.0) -> tuple[float, float] | None:
    """Return when an even stream is first called a crawl, and the pace it is said to have."""
    now = 0.0
    while now < until_s:
        now += every_s
        tokens_per_s = pace.arrived(characters, now)
        if tokens_per_s is not None:
            return now, tokens_per_s
    return None


def test_a_stream_below_its_floor_is_noticed_after_one_span() -> None:
    assert _first_crawl(Pace(1.0, SPAN_S, 0.0), every_s=2.0, characters=200) == (30.0, 0.5)


@pytest.mark.parametrize("every_s", [0.02, 0.5, 1.0])
def test_a_stream_at_or_above_its_floor_is_left_alone(every_s: float) -> None:
    assert _first_crawl(Pace(1.0, SPAN_S, 0.0), every_s, characters=200) is None


def test_long_events_hold_many_tokens() -> None:
    """A provider that sends forty words every eight seconds does not crawl."""
    pace = Pace(1.0, SPAN_S, 0.0)
    assert pace.arrived(200, 0.1) is None
    assert _first_crawl(pace, every_s=8.0, characters=400) is None
    assert _first_crawl(Pace(1.0, SPAN_S, 0.0), every_s=8.0, characters=200) is not None


def test_a_pause_alone_is_no_crawl() -> None:
    """Fourteen seconds of thinking between two bursts at twenty tokens a second."""
    pace, now = Pace(1.0, SPAN_S, 0.0), 0.0
    for _ in range(6):
        for _ in range(40):
            now += 0.05
            assert pace.arrived(200, now) is None
        now += 14.0


def test_each_span_is_judged_by_itself() -> None:
    pace, now = Pace(1.0, SPAN_S, 0.0), 0.0
    for _ in range(3000):
        now += 0.01
        pace.arrived(200, now)
    late = _first_crawl(pace, every_s=5.0, characters=200)
    assert late is not None, "a fast beginning excuses no crawl"


@pytest.mark.parametrize(
    ("usual", "can_move", "floor"),
    [(None, False, 1.0), (None, True, 1.0), (50.0, False, 1.0), (50.0, True, 5.0), (4.0, False, 0.4), (4.0, True, 0.4)],
)
def test_what_can_go_on_elsewhere_is_held_to_the_endpoint_s_own_pace(
    usual: float | None, can_move: bool, floor: float
) -> None:
    policy = AttemptPolicy(crawl_tokens_per_s=1.0, crawl_ratio=0.1)
    assert crawl_floor_tokens_per_s(policy, usual, can_move=can_move) == pytest.approx(floor)


def test_the_usual_pace_is_that_of_the_normal_time() -> None:
    window = Window()
    assert usual_tokens_per_s(window, 0.0) is None
    for second in range(60):
        window.started("x", float(second))
        window.finished("x", Outcome.OK, second + 2.5, ttft_s=0.5, output_tokens=100, generation_s=2.0)
    assert usual_tokens_per_s(window, 120.0) == pytest.approx(50.0)
