"""L-14 in small: the soak of `make soak` with two hundred streams at once, through the same chaos."""

from bench.soak import End, soak


async def test_l14_streams_in_chaos_do_not_mix_and_leave_nothing() -> None:
    soaked = await soak(200, 2, 4.0)
    assert soaked.ends[End.CORRUPT] == 0, soaked.oddities
    assert soaked.ends[End.WHOLE] + soaked.ends[End.BROKEN] + soaked.ends[End.REFUSED] == 450
    assert soaked.ends[End.WHOLE] >= 225, "failover serves most of what has not begun"
    assert soaked.ends[End.BROKEN] > 0, "the chaos did strike streams that had begun"
    assert soaked.most_open >= 100
    assert soaked.is_clean, soaked.idle
    assert soaked.idle[-1].rss_kib < soaked.idle[0].rss_kib + 40_000
