"""One model's history, ready to be cut into hours: its endpoints in order, what is normal for them, what went wrong.

The rule of this file: everything here holds for the whole period; what happened in an hour is read when it is replayed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

import duckdb

from analytics.replay import EndpointFacts, Incident, ReplaySource, Spread
from routing.outcomes import Outcome
from sim.arena.policy import ArenaEndpoint
from sim.arena.scenario import Endpoint
from sim.arena.truth import FAILED

OTHER_FAILURE = FAILED.index(Outcome.MALFORMED)
DAY_S = 86_400.0
_USUAL_TTFT_MS = 500.0
_USUAL_TOKENS_PER_S = 60.0
_SIGMA_FLOOR, _SIGMA_CEILING = 0.05, 3.0
_MOST_ERRORS = 0.099


@dataclass(frozen=True, slots=True)
class Normal:
    """What one endpoint is like on a good day.

    `ttft_s`: median time to first token. `sigma`: spread of its logarithm. `channels`: median (seconds) and log spread
    by kind of evidence: a streamed first token, a whole reply, a probe. `rates`: chance of each outcome of `FAILED`.
    """

    ttft_s: float
    sigma: float
    tokens_per_s: float
    channels: Mapping[str, tuple[float, float]]
    rates: tuple[float, ...]
    rests_on: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """One model between `since` and `until` (unix seconds); endpoints in configured order, at least two. Those of
    `unseen` were never called, so that nothing is known of them and the replay goes without.
    """

    model: str
    since: float
    until: float
    endpoints: tuple[ArenaEndpoint, ...]
    normals: tuple[Normal, ...]
    incidents: tuple[Incident, ...]
    pauses: tuple[tuple[int, float, float], ...]
    unseen: tuple[str, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """The endpoints' ids, in order."""
        return tuple(endpoint.id for endpoint in self.endpoints)

    def scenario_endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints as an arena scenario describes them."""
        return tuple(
            Endpoint(
                id=e.id, provider=e.provider, region=e.region, zone=e.zone, ttft_ms=n.ttft_s * 1000, ttft_sigma=n.sigma,
                tokens_per_s=n.tokens_per_s, error_rate=min(_MOST_ERRORS, sum(n.rates)), limited_rate=0.0,
                usd_per_mtok=e.usd_per_mtok,
            )
            for e, n in zip(self.endpoints, self.normals, strict=True)
        )  # fmt: skip


class NothingToReplayError(ValueError):
    """The history of a model says too little for a replay; says what is missing."""


def source_of(connection: duckdb.DuckDBPyConnection, model: str) -> ReplaySource:
    """Return the reader of a model's history, with the arena's classes of failure."""
    return ReplaySource(connection, model, [outcome.value for outcome in FAILED], OTHER_FAILURE)


def read_recorded(source: ReplaySource, model: str, since: float, until: float, order: Sequence[str] = ()) -> Recorded:
    """Read what holds for the whole period.

    Args:
        source: of that model.
        model, since, until: what to read, in unix seconds.
        order: endpoint ids in configured order; by default the order that recorded decisions went by. Endpoints that
            are not named are left out.

    Raises:
        NothingToReplayError: fewer than two endpoints are left.
    """
    facts = source.facts(since, until)
    named = order or source.configured_order(since, until)
    known = [facts[name] for name in named if name in facts]
    if len(known) < 2:
        raise NothingToReplayError(
            f"{model}: {len(known)} of {len(named)} endpoints were ever called, expected two or more to choose from"
        )
    ids = [one.id for one in known]
    return Recorded(
        model=model,
        since=since,
        until=until,
        endpoints=tuple(
            ArenaEndpoint(place, one.id, one.provider, one.region, one.zone, one.usd_per_mtok or 0.0)
            for place, one in enumerate(known)
        ),
        normals=tuple(_normal(one) for one in known),
        incidents=tuple(_incidents(source, ids, since, until)),
        pauses=tuple(source.pauses(ids, since, until)),
        unseen=tuple(name for name in named if name not in facts),
    )


def _incidents(source: ReplaySource, ids: Sequence[str], since: float, until: float) -> list[Incident]:
    """Read day by day, which bounds memory; an incident over midnight is one."""
    found: list[Incident] = []
    begin = since
    while begin < until:
        end = min(until, begin + DAY_S)
        for incident in source.incidents(ids, begin, end):
            earlier = next((i for i, one in enumerate(found) if _touch(one, incident)), None)
            if earlier is None:
                found.append(incident)
            else:
                one = found[earlier]
                found[earlier] = Incident(one.endpoint, one.begin, max(one.end, incident.end), one.outcome)
        begin = end
    return found


def _touch(one: Incident, later: Incident) -> bool:
    return one.endpoint == later.endpoint and later.begin <= one.end + 60.0


def _normal(facts: EndpointFacts) -> Normal:
    spreads = {"ttft": facts.ttft_ms, "reply": facts.reply_ms, "probe": facts.probe_ms}
    channels = {name: _channel(spread) for name, spread in spreads.items() if spread is not None and spread[1] > 0}
    # A probe asks for one token, so that its reply comes with the first; a whole reply is the last resort.
    ttft_s, sigma = next(
        (channels[name] for name in ("ttft", "probe", "reply") if name in channels), (_USUAL_TTFT_MS / 1000, 0.3)
    )
    return Normal(
        ttft_s=ttft_s,
        sigma=sigma,
        tokens_per_s=facts.tokens_per_s or _USUAL_TOKENS_PER_S,
        channels=channels,
        rates=facts.rates,
        rests_on=facts.good_attempts,
    )


def _channel(spread: Spread) -> tuple[float, float]:
    low, median, high = spread
    sigma = log(high / low) / 2 if low > 0 else _SIGMA_CEILING
    return median / 1000, min(_SIGMA_CEILING, max(_SIGMA_FLOOR, sigma))
