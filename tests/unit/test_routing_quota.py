"""A 429 pauses; one that follows soon halves the share, which grows back; none takes an endpoint out for good."""

import pytest

from routing.quota import Quota


def _halved(retry_after_s: float = 1.0) -> Quota:
    """Return a quota that was limited at 0 and again at 1, when its first pause had just ended."""
    quota = Quota()
    quota.limited(0.0, 1.0)
    quota.limited(1.0, retry_after_s)
    return quota


def test_retry_after_is_honoured_to_the_moment() -> None:
    quota = Quota()
    quota.limited(100.0, 7.0)
    assert quota.blocked_until == 107.0
    assert quota.share(106.999) == 0.0
    assert quota.share(107.0) > 0.0


@pytest.mark.parametrize(("retry_after_s", "pause_s"), [(7.0, 7.0), (None, 1.0)])
@pytest.mark.parametrize("at", [0.0, 3.0, 1e9])
def test_f17_a_lone_limit_costs_its_pause_alone(retry_after_s: float | None, pause_s: float, at: float) -> None:
    quota = Quota()
    quota.limited(at, retry_after_s)
    assert quota.share(at) == 0.0
    assert quota.share(at + pause_s) == 1.0


@pytest.mark.parametrize(("after_s", "share"), [(0.0, 0.5), (9.999, 0.5), (10.0, 1.0), (60.0, 1.0)])
def test_f17_a_limit_halves_the_share_when_it_comes_within_ten_seconds_of_a_pause(after_s: float, share: float) -> None:
    """The ten seconds run from the end of the last pause, not from the 429 that began it."""
    quota = Quota()
    quota.limited(0.0, 30.0)
    quota.limited(30.0 + after_s, 4.0)
    assert quota.share(33.999 + after_s) == 0.0
    assert quota.share(34.0 + after_s) == share


def test_the_share_grows_back_to_all_of_it_and_no_further() -> None:
    quota = _halved()
    shares = [quota.share(2.0 + second) for second in range(12)]
    assert shares == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9] + [1.0] * 7)
    assert max(shares) == 1.0


def test_each_limit_that_follows_at_once_halves_the_share_down_to_a_floor() -> None:
    quota, now = Quota(), 0.0
    found = []
    for _ in range(8):
        quota.limited(now, 2.0)
        now = quota.blocked_until
        found.append(quota.share(now))
    assert found == [1.0, 0.5, 0.25, 0.125, 0.0625, 0.05, 0.05, 0.05]


def test_a_limit_halves_what_had_grown_back() -> None:
    quota = _halved()
    quota.limited(5.0, 1.0)
    assert quota.share(6.0) == pytest.approx(0.8 / 2)


def test_answers_to_requests_sent_before_the_pause_do_not_deepen_it() -> None:
    quota = _halved(retry_after_s=10.0)
    for late, asked_s in ((1.1, 9.0), (4.0, None), (10.9, 0.0)):
        quota.limited(late, asked_s)
    assert (quota.blocked_until, quota.share(11.0), quota.pause_s) == (11.0, 0.5, 1.0)


def test_f17_a_burst_of_limits_at_once_is_one_limit() -> None:
    quota = Quota()
    for late in (0.0, 0.0, 0.1, 0.9):
        quota.limited(late, 1.0)
    assert quota.blocked_until == 1.9
    assert quota.share(1.9) == 1.0


def test_f17_a_longer_retry_after_within_a_pause_is_honoured() -> None:
    quota = _halved()
    quota.limited(1.5, 60.0)
    assert (quota.blocked_until, quota.share(61.4)) == (61.5, 0.0)
    assert quota.share(61.5) == 0.5, "it is one limit, halved once"


def test_without_retry_after_the_pause_doubles_up_to_a_limit() -> None:
    quota, now, pauses = Quota(), 0.0, []
    for _ in range(7):
        quota.limited(now, None)
        pauses.append(quota.blocked_until - now)
        now = quota.blocked_until
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


@pytest.mark.parametrize(("succeeded_at", "pause_s"), [(0.5, 2.0), (1.0, 2.0), (10.999, 2.0), (11.0, 1.0)])
def test_f17_only_a_success_ten_seconds_after_the_pause_makes_the_next_one_short(
    succeeded_at: float, pause_s: float
) -> None:
    """One request that slips through between two limits proves nothing about the provider's quota."""
    quota = Quota()
    quota.limited(0.0, None)
    quota.succeeded(succeeded_at)
    quota.limited(11.0, None)
    assert quota.blocked_until == 11.0 + pause_s


def test_a_success_gives_back_no_share_before_its_time() -> None:
    quota = _halved()
    quota.succeeded(4.0)
    assert quota.share(4.0) == pytest.approx(0.7)


@pytest.mark.parametrize(("asked_s", "given_s"), [(-5.0, 0.0), (0.0, 0.0), (86_400.0, 600.0)])
def test_an_absurd_retry_after_is_bounded(asked_s: float, given_s: float) -> None:
    quota = Quota()
    quota.limited(50.0, asked_s)
    assert quota.blocked_until == 50.0 + given_s


def test_reading_the_share_changes_nothing() -> None:
    quota = _halved(retry_after_s=5.0)
    before = (quota.share(3.0), quota.share(7.0))
    quota.share(500.0)
    assert (quota.share(3.0), quota.share(7.0)) == before


def test_a_lone_limit_after_an_earlier_storm_costs_its_pause_alone() -> None:
    quota = Quota()
    quota.limited(0.0, 1.0)
    quota.limited(1.0, 1.0)
    assert quota.share(2.0) == 0.5
    quota.limited(12.0, 1.0)
    assert quota.share(13.0) == 1.0
