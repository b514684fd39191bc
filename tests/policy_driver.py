"""Hand-fed policies: send one attempt, say how it ended, look where the next one goes. No world, no luck."""

from routing.outcomes import Outcome
from sim.arena.policy import ArenaEndpoint, ArenaRequest, Attempted, Policy
from sim.policies import make

# How long the callers of these requests wait.
PATIENCE_S = 600.0
OK, LIMITED, ERROR = Outcome.OK, Outcome.RATE_LIMITED, Outcome.SERVER_ERROR


def endpoints(count: int, prices: tuple[float, ...] = ()) -> list[ArenaEndpoint]:
    """Return `count` endpoints of different providers, at 1 USD per million tokens unless `prices` says otherwise."""
    return [
        ArenaEndpoint(i, f"e{i}", f"p{i}", "eu-west", f"zone-{i}", prices[i] if prices else 1.0) for i in range(count)
    ]


def policy_of(name: str, count: int = 3, prices: tuple[float, ...] = (), **parameters: float) -> Policy:
    """Return a new policy, with its published defaults unless `parameters` says otherwise."""
    return make(name, endpoints(count, prices), 7, parameters)


def request(
    number: int = 0, time: float = 0.0, session: int = 0, idempotent: bool = True, patience_s: float = PATIENCE_S
) -> ArenaRequest:
    """Return a small request."""
    return ArenaRequest(number, time, time + patience_s, 100, 50, session, idempotent)


def ended(
    endpoint: int,
    outcome: Outcome = OK,
    attempt_id: str = "a",
    ttft_s: float | None = None,
    retry_after_s: float | None = None,
    latency_s: float = 0.5,
) -> Attempted:
    """Return how an attempt ended; a success has a first token after 0.3 s unless told otherwise."""
    if outcome is OK and ttft_s is None:
        ttft_s = 0.3
    return Attempted(
        endpoint, attempt_id, outcome, ttft_s, latency_s, 50.0 if outcome is OK else None, 50, retry_after_s
    )


class Feed:
    """Feeds one policy whole attempts."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._sent = 0

    def attempt(
        self,
        endpoint: int,
        outcome: Outcome,
        now: float,
        retry_after_s: float | None = None,
        ttft_s: float | None = None,
        latency_s: float = 0.5,
    ) -> None:
        """Send an attempt at `now` that ends at once."""
        self._sent += 1
        attempt_id = f"a{self._sent}"
        self.policy.started(endpoint, attempt_id, now)
        self.policy.finished(ended(endpoint, outcome, attempt_id, ttft_s, retry_after_s, latency_s), now)

    def attempts(self, endpoint: int, outcome: Outcome, times: int, now: float) -> None:
        """Send several at the same moment."""
        for _ in range(times):
            self.attempt(endpoint, outcome, now)

    def chosen(self, now: float, tried: tuple[int, ...] = (), draw: float = 0.5, session: int = 0) -> int | None:
        """Return where a request goes."""
        return self.policy.route(request(time=now, session=session), tried, now, draw)

    def retry(
        self,
        *outcomes: tuple[int, Outcome],
        now: float = 0.0,
        draw: float = 0.5,
        retry_after_s: float | None = None,
        ttft_s: float | None = None,
        arrived: float = 0.0,
    ) -> float | None:
        """Return the wait before another attempt of a request whose attempts ended so."""
        made = [ended(endpoint, outcome, ttft_s=ttft_s, retry_after_s=retry_after_s) for endpoint, outcome in outcomes]
        return self.policy.retry(request(time=arrived), made, now, draw)


def feed(name: str, count: int = 3, prices: tuple[float, ...] = (), **parameters: float) -> Feed:
    """Return a fed policy."""
    return Feed(policy_of(name, count, prices, **parameters))
