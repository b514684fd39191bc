"""A history whose truth is known: an arena world, recorded as the service would record it while a policy served it."""

from pathlib import Path

import duckdb

from analytics.records import AttemptRecord, Record, RequestRecord
from routing.outcomes import Outcome
from routing.policy import Policy
from sim.arena.loop import run
from sim.arena.policy import ArenaEndpoint, Attempted
from sim.arena.truth import World
from sim.policies.routecast import Routecast
from tests.history_records import history

T0 = 1_750_000_000.0
MODEL = "m"
SHIPPED = Policy()


class Recording(Routecast):
    """The engine as a policy, which notes how every attempt and every probe ended, and when."""

    def __init__(self, world: World, policy: Policy) -> None:
        super().__init__(world.endpoints, policy)
        self.seen: list[tuple[Attempted, float, bool]] = []

    def finished(self, attempted: Attempted, now: float) -> None:
        """Note it."""
        self.seen.append((attempted, now, False))
        super().finished(attempted, now)

    def probed(self, attempted: Attempted, now: float) -> None:
        """Note it."""
        self.seen.append((attempted, now, True))
        super().probed(attempted, now)


def recorded_history(
    world: World, root: Path, begins: float = T0, policy: Policy = SHIPPED
) -> duckdb.DuckDBPyConnection:
    """Serve `world` by a policy without forecasts and return a connection to what was recorded, from `begins` on."""
    recording = Recording(world, policy)
    log = run(world, recording)
    records: list[Record] = [
        _attempt(world.endpoints[a.endpoint], a, begins + now, probe) for a, now, probe in recording.seen
    ]
    ended = {int(a.attempt_id.partition(".")[0]): (a, now) for a, now, probe in recording.seen if not probe}
    for number, arrived in enumerate(log.arrival_s.tolist()):
        attempted, now = ended.get(number, (None, arrived))
        served = world.endpoints[attempted.endpoint] if attempted and not log.failed[number] else None
        records.append(
            RequestRecord(
                replica="r1", time=begins + now, request_id=str(number), edge="grpc", method="stream", model=MODEL,
                agent="", tenant="", session_id="", endpoint=served.id if served else "",
                provider=served.provider if served else "", region=served.region if served else "",
                status="ok" if served else "ATTEMPTS_EXHAUSTED", attempts=int(log.attempts[number]), failed_over=False,
                ttft_ms=None if log.ttft_s[number] != log.ttft_s[number] else 1000 * float(log.ttft_s[number]),
                latency_ms=1000 * (now - arrived), input_tokens=int(world.workload.input_tokens[number]),
                output_tokens=int(world.workload.output_tokens[number]), cost_usd=float(log.cost_usd[number]),
            )
        )  # fmt: skip
    return history(root, records)


def _attempt(endpoint: ArenaEndpoint, attempted: Attempted, now: float, probe: bool) -> AttemptRecord:
    is_ok = attempted.outcome is Outcome.OK
    tokens = attempted.output_tokens if is_ok else None
    return AttemptRecord(
        replica="r1", time=now, started=now - attempted.latency_s, request_id="", decision_id="", number=1,
        kind="probe" if probe else "live", endpoint=endpoint.id, provider=endpoint.provider, region=endpoint.region,
        zone=endpoint.zone, model=MODEL, agent="", tenant="", outcome=attempted.outcome.value, http_status=None,
        error="", ttft_ms=None if probe or attempted.ttft_s is None else 1000 * attempted.ttft_s,
        latency_ms=1000 * attempted.latency_s, input_tokens=None, output_tokens=tokens, cost_usd=None,
    )  # fmt: skip
