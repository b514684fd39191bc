"""The adaptive limit, against simulated servers on a virtual clock (issue 5, item 7; L-03)."""

from random import Random

import pytest

from service.tenancy.limiter import GradientLimiter, LimiterPolicy

POLICY = LimiterPolicy(least=8, most=1000)
USUAL_S = 0.2


class _Server:
    """Answers in `USUAL_S` (times luck) while at most `knee` requests are under way, and in proportion beyond. As many
    requests as the limit allows are under way, but no more than are asked for.
    """

    def __init__(self, knee: int, *, policy: LimiterPolicy = POLICY, endpoints: int = 1) -> None:
        self.knee = knee
        self.slow = [1.0] * endpoints
        self.limiter = GradientLimiter(policy, 0.0)
        self.now = 0.0
        self.rng = Random(3)

    def run(self, seconds: float, asked: int) -> None:
        until = self.now + seconds
        while self.now < until:
            flight = min(asked, self.limiter.limit)
            for number, slow in enumerate(self.slow):
                luck = self.rng.lognormvariate(0, 0.5)
                latency_s = USUAL_S * slow * luck * max(1.0, flight / self.knee)
                self.limiter.observe(f"e{number}", latency_s, flight, self.now, streamed=True)
            self.now += 0.01


def test_without_pressure_the_limit_stays_at_its_most() -> None:
    server = _Server(knee=100)
    server.run(600, asked=80)
    assert server.limiter.limit == POLICY.most


def test_l03_a_saturated_server_brings_the_limit_near_its_knee() -> None:
    server = _Server(knee=50)
    server.run(60, asked=30)
    server.run(60, asked=1000)
    assert 50 <= server.limiter.limit <= 150
    limits = []
    for _ in range(120):
        server.run(1, asked=1000)
        limits.append(server.limiter.limit)
    assert min(limits) >= 50, "never below what it can do"
    assert sorted(limits)[60] <= 150, "it stays near the knee"


def test_l03_the_limit_recovers_when_the_server_does() -> None:
    server = _Server(knee=50)
    server.run(60, asked=30)
    server.run(60, asked=1000)
    server.knee = 2000
    server.run(60, asked=1000)
    assert server.limiter.limit >= 900


def test_a_limit_that_does_not_help_is_lifted() -> None:
    """The server has become three times as slow at any load: fewer requests would only be fewer."""
    server = _Server(knee=10_000)
    server.run(60, asked=400)
    server.slow = [3.0]
    server.run(60, asked=400)
    assert server.limiter.limit >= 400
    before = server.limiter.limit
    server.run(60, asked=400)
    assert server.limiter.limit >= before


def test_one_slow_endpoint_of_two_throttles_nobody() -> None:
    server = _Server(knee=10_000, endpoints=2)
    server.run(60, asked=400)
    server.slow = [5.0, 1.0]
    server.run(60, asked=400)
    assert server.limiter.limit == POLICY.most


def test_both_endpoints_slowed_by_load_do() -> None:
    server = _Server(knee=50, endpoints=2)
    server.run(60, asked=30)
    server.run(60, asked=1000)
    assert server.limiter.limit <= 150


def test_answers_of_very_different_length_are_no_slowness() -> None:
    limiter, rng, now = GradientLimiter(POLICY, 0.0), Random(5), 0.0
    for _ in range(20_000):
        limiter.observe("e", rng.lognormvariate(0, 1.2), 500, now, streamed=False)
        now += 0.01
    assert limiter.limit >= 500


def test_kinds_are_not_mixed() -> None:
    """Whole replies take longer than first tokens; a change in their mixture is no change of either."""
    limiter, now = GradientLimiter(POLICY, 0.0), 0.0
    for minute in range(10):
        for number in range(600):
            streamed = number % 10 >= minute
            limiter.observe("e", 0.2 if streamed else 5.0, 500, now, streamed=streamed)
            now += 0.01
    assert limiter.limit == POLICY.most


@pytest.mark.parametrize("latency_s", [0.0, 1e-9, 1e9])
def test_no_latency_takes_the_limit_out_of_its_bounds(latency_s: float) -> None:
    limiter, now = GradientLimiter(POLICY, 0.0), 0.0
    for number in range(2000):
        limiter.observe("e", latency_s if number > 500 else 0.1, 900, now, streamed=True)
        now += 0.01
        assert POLICY.least <= limiter.limit <= POLICY.most
