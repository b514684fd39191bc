"""A 429 pauses, halves and grows back; it never takes an endpoint out for good."""

import pytest

from routing.quota import Quota


def test_retry_after_is_honoured_to_the_moment() -> None:
    quota = Quota()
    quota.limited(100.0, 7.0)
    assert quota.blocked_until == 107.0
    assert quota.share(106.999) == 0.0
    assert quota.share(107.0) == 0.5


def test_the_share_grows_back_to_all_of_it_and_no_further() -> None:
    quota = Quota()
    quota.limited(0.0, 1.0)
    shares = [quota.share(1.0 + second) for second in range(12)]
    assert shares == sorted(shares)
    assert shares[2] == pytest.approx(0.7)
    assert shares[-1] == 1.0


def test_each_new_limit_halves_what_had_grown_back_down_to_a_floor() -> None:
    quota, now = Quota(), 0.0
    found = []
    for _ in range(8):
        quota.limited(now, 2.0)
        now = quota.blocked_until
        found.append(quota.share(now))
    assert found[:4] == [0.5, 0.25, 0.125, 0.0625]
    assert found[4:] == [0.05] * 4


def test_answers_to_requests_sent_before_the_pause_do_not_deepen_it() -> None:
    quota = Quota()
    quota.limited(0.0, 10.0)
    for late, asked_s in ((0.1, 9.0), (3.0, None), (9.9, 0.0)):
        quota.limited(late, asked_s)
    assert (quota.blocked_until, quota.share(10.0), quota.pause_s) == (10.0, 0.5, 1.0)


def test_f17_a_longer_retry_after_within_a_pause_is_honoured() -> None:
    quota = Quota()
    quota.limited(0.0, 1.0)
    quota.limited(0.5, 60.0)
    assert (quota.blocked_until, quota.share(60.4)) == (60.5, 0.0)
    assert quota.share(60.5) == 0.5, "it is one limit, halved once"


def test_without_retry_after_the_pause_doubles_up_to_a_limit() -> None:
    quota, now, pauses = Quota(), 0.0, []
    for _ in range(7):
        quota.limited(now, None)
        pauses.append(quota.blocked_until - now)
        now = quota.blocked_until
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_success_after_the_pause_makes_the_next_one_short_again() -> None:
    quota = Quota()
    quota.limited(0.0, None)
    quota.succeeded(0.5)
    quota.limited(1.0, None)
    assert quota.blocked_until == 3.0, "a success of before the pause proves nothing"
    quota.succeeded(3.0)
    quota.limited(4.0, None)
    assert quota.blocked_until == 5.0


@pytest.mark.parametrize(("asked_s", "given_s"), [(-5.0, 0.0), (0.0, 0.0), (86_400.0, 600.0)])
def test_an_absurd_retry_after_is_bounded(asked_s: float, given_s: float) -> None:
    quota = Quota()
    quota.limited(50.0, asked_s)
    assert quota.blocked_until == 50.0 + given_s


def test_reading_the_share_changes_nothing() -> None:
    quota = Quota()
    quota.limited(0.0, 5.0)
    before = (quota.share(3.0), quota.share(6.0))
    quota.share(500.0)
    assert (quota.share(3.0), quota.share(6.0)) == before
