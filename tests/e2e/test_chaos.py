"""A small run of `python -m bench.chaos`."""

from bench.chaos import stormed


async def test_l07_half_of_the_primarys_requests_fail_and_callers_do_not_notice() -> None:
    """F-04: what must not run twice is sent once, what came twice under one key too; C-05: each has one entry."""
    run = await stormed(rate=60, windows=1, window_s=4, calm_s=1.5)
    assert run.complaints() == []
    assert len(run.asked) >= 200
    assert any(each.attempts > 1 for each in run.asked), "the trouble did strike"
    assert run.joined > 0
    assert {mark.partition("-")[0] for mark in run.sent} == {"again", "keyed", "once"}
