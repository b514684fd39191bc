"""A small run of the profile of limits: `python -m bench.limits` is the large one."""

from bench.limits import limited


async def test_l13_everybody_limited_under_a_steady_load() -> None:
    """Every error says when to come back, providers are left in peace, and the last requests are served again."""
    run = await limited(rate=60, calm_s=2, limited_s=2)
    assert len(run.asked) == 360
    assert run.meanwhile
    assert {each.error for each in run.asked} <= {"", "429", "RESOURCE_EXHAUSTED"}
    assert all(each.has_hint for each in run.asked if each.error)
    assert run.amplification <= 1.2
    last = sorted(run.asked, key=lambda each: each.sent)[-20:]
    assert not any(each.error for each in last)
