"""A lone 429 moves nothing; a limit pauses, then starts slowly; none takes an endpoint out for good."""

import pytest

from routing.quota import Quota

_QUIET_PER_S = 0.1


def _limited(at: float = 0.0, retry_after_s: float | None = 1.0) -> Quota:
    quota = Quota()
    quota.limited(at, retry_after_s)
    return quota


def _proven() -> Quota:
    """Return the quota of a provider that has answered a hundred requests."""
    quota = Quota()
    for _ in range(100):
        quota.admitted()
    return quota


def test_retry_after_is_honoured_to_the_moment() -> None:
    quota = _limited(100.0, 7.0)
    assert quota.blocked_until == 107.0
    assert quota.share(106.999) == 0.0
    assert quota.share(107.0) > 0.0


@pytest.mark.parametrize("at", [0.0, 3.0, 1e9])
def test_before_any_limit_an_endpoint_takes_all_its_traffic(at: float) -> None:
    assert Quota().share(at) == 1.0


def test_f17_a_first_429_of_a_provider_that_has_served_nothing_is_a_limit() -> None:
    quota = Quota()
    quota.refused(0.0, 7.0, _QUIET_PER_S)
    assert quota.blocked_until == 7.0


def test_f17_a_lone_429_among_answers_moves_nothing() -> None:
    quota = _proven()
    for second in range(0, 1000, 10):
        quota.refused(float(second), 7.0, _QUIET_PER_S)
        assert quota.share(float(second)) == 1.0
        for _ in range(9):
            quota.admitted()


@pytest.mark.parametrize(("attempts_per_s", "refusals"), [(0.1, 2), (5.0, 4), (500.0, 5)])
def test_f17_the_faster_the_traffic_the_more_refusals_in_a_row_make_a_limit(
    attempts_per_s: float, refusals: int
) -> None:
    """Chance alone must not make one more than about once an hour."""
    quota = _proven()
    for _ in range(refusals - 1):
        quota.refused(0.0, 7.0, attempts_per_s)
    assert quota.share(0.0) == 1.0
    quota.refused(0.0, 7.0, attempts_per_s)
    assert quota.blocked_until == 7.0


@pytest.mark.parametrize(("refused_of_ten", "is_limit"), [(1, False), (3, True), (5, True)])
def test_f17_a_share_of_refusals_is_a_limit_when_leaving_costs_less_than_second_attempts(
    refused_of_ten: int, is_limit: bool
) -> None:
    quota = _proven()
    for turn in range(1000):
        if turn % 10 < refused_of_ten:
            quota.refused(turn / 5, 5.0, 5.0)
        else:
            quota.admitted()
    assert (quota.blocked_until > 0) is is_limit


def test_after_the_pause_the_share_doubles_every_five_seconds() -> None:
    quota = _limited(0.0, 1.0)
    assert [quota.share(1.0 + 5 * i) for i in range(4)] == pytest.approx([0.05, 0.1, 0.2, 0.4])
    assert 0.99 < quota.share(22.6) < 1.0
    assert quota.share(22.7) == quota.share(1e9) == 1.0


def test_f17_one_more_refusal_right_after_a_pause_is_the_limit_still() -> None:
    quota = _proven()
    for _ in range(4):
        quota.refused(0.0, 5.0, 5.0)
    quota.refused(6.0, 5.0, 5.0)
    assert quota.blocked_until == 11.0


@pytest.mark.parametrize("limits", [1, 50])
@pytest.mark.parametrize(("served", "is_limit"), [(13, True), (14, False)])
def test_f17_a_long_storm_is_forgotten_as_soon_as_a_short_one(limits: int, served: int, is_limit: bool) -> None:
    quota = _proven()
    quota.refused(0.0, 0.0, _QUIET_PER_S)
    for second in range(limits):
        quota.refused(second, 1.0, _QUIET_PER_S)
    for _ in range(served):
        quota.admitted()
    quota.refused(limits, 1.0, _QUIET_PER_S)
    assert (quota.blocked_until == limits + 1) is is_limit


def test_answers_to_requests_sent_before_the_pause_do_not_deepen_it() -> None:
    quota = _limited(0.0, 10.0)
    for late, asked_s in ((1.1, 8.0), (4.0, None), (9.9, 0.0)):
        quota.refused(late, asked_s, _QUIET_PER_S)
    assert (quota.blocked_until, quota.share(10.0), quota.pause_s) == (10.0, 0.05, 1.0)


def test_f17_a_longer_retry_after_within_a_pause_is_honoured() -> None:
    quota = _limited()
    quota.refused(0.5, 60.0, _QUIET_PER_S)
    assert (quota.blocked_until, quota.share(60.4)) == (60.5, 0.0)
    assert quota.share(60.5) == 0.05


def test_without_retry_after_the_pause_doubles_up_to_a_limit() -> None:
    quota, now, pauses = Quota(), 0.0, []
    for _ in range(7):
        quota.limited(now, None)
        pauses.append(quota.blocked_until - now)
        now = quota.blocked_until
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


@pytest.mark.parametrize(("served", "pause_s"), [(1, 2.0), (17, 2.0), (18, 1.0)])
def test_f17_the_pause_starts_short_again_once_nothing_speaks_of_a_limit(served: int, pause_s: float) -> None:
    """One request that slips through between two limits proves nothing about the provider's quota."""
    quota = Quota()
    quota.refused(0.0, None, _QUIET_PER_S)
    for _ in range(served):
        quota.admitted()
    quota.limited(50.0, None)
    assert quota.blocked_until == 50.0 + pause_s


@pytest.mark.parametrize(("asked_s", "given_s"), [(-5.0, 0.0), (0.0, 0.0), (86_400.0, 600.0)])
def test_an_absurd_retry_after_is_bounded(asked_s: float, given_s: float) -> None:
    assert _limited(50.0, asked_s).blocked_until == 50.0 + given_s


def test_reading_the_share_changes_nothing() -> None:
    quota = _limited(0.0, 5.0)
    before = (quota.share(3.0), quota.share(7.0))
    quota.share(500.0)
    assert (quota.share(3.0), quota.share(7.0)) == before
