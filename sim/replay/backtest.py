"""A backtest: a history under the policy in force, the proposed one and the field's, with what it rests on.

The rule of this file: what was recorded stands beside what is replayed, so that a reader can see how well the replay of
the policy that was really in force meets what really happened.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import duckdb
import numpy as np

from analytics.replay import Incident, ReplaySource
from sim.arena.truth import SLOW
from sim.replay.chronicle import Chronicle, read_chronicle
from sim.replay.figures import difference, figure, only
from sim.replay.play import Departure, Played, Player, play
from sim.replay.recorded import Recorded, read_recorded, source_of
from sim.replay.spans import HOUR_S, Chosen, choose_spans
from sim.scorecard.summary import Estimate

FIGURES = (
    "failed_per_1k", "bad_per_1k", "ttft_p95_ms", "needless_diversion", "switches_per_day", "false_failovers_per_day",
    "cost_usd_per_1k", "probe_share",
)  # fmt: skip
DIFFERED = ("failed_per_1k", "bad_per_1k", "cost_usd_per_1k")
# What fits in memory and in a coffee break; busier histories are sampled more thinly.
_MOST_REQUESTS = 3_000_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Hourly:
    """One model's chronicles, with whether each hour was eventful, and what they were chosen from."""

    recorded: Recorded
    chosen: Chosen
    chronicles: tuple[Chronicle, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """What one policy did about an incident: the median of `left_s` over the drawn worlds in which it left, the share
    of worlds in which it did, and the mean number of bad requests. `concerned` is False when it sent nothing there.
    """

    concerned: bool
    left_s: float | None
    left_share: float
    bad: float


@dataclass(frozen=True, slots=True)
class IncidentReport:
    """One incident, and what each policy did about it. Times are unix seconds."""

    endpoint: str
    begin: float
    end: float
    kind: str
    policies: Mapping[str, Left]


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model's backtest.

    `evidence`: by endpoint, the share of the replayed time with an attempt or probe within 30 s. `recorded`: what was
    really seen in the replayed hours, by the names of figures. `figures`: by policy; `differences`: to the first
    policy, on the same worlds.
    """

    model: str
    requests: int
    hours: int
    eventful_hours: int
    replayed_hours: float
    evidence: Mapping[str, float]
    unseen: tuple[str, ...]
    recorded: Mapping[str, float | None]
    figures: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Estimate]]
    incidents: tuple[IncidentReport, ...]


def read_hours(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    since: float,
    until: float,
    *,
    order: Sequence[str] = (),
    most_hours: int,
    deadline_s: float,
) -> Hourly:
    """Read the hours to replay. Raises NothingToReplayError when there are not two endpoints to choose from."""
    source: ReplaySource = source_of(connection, model)
    recorded = read_recorded(source, model, since, until, order)
    hours = source.hours(since, until)
    busiest = max((hour.requests for hour in hours), default=1)
    chosen = choose_spans(hours, since, until, most=max(2, min(most_hours, _MOST_REQUESTS // max(1, busiest))))
    chronicles = tuple(read_chronicle(recorded, source, span, deadline_s) for span in chosen.spans)
    return Hourly(recorded, chosen, chronicles)


def backtest(
    hourly: Hourly,
    players: Sequence[Player],
    *,
    seeds: Sequence[int] = range(3),
    jobs: int = 2,
    progress: Progress | None = None,
) -> ModelReport:
    """Replay one model's hours under every player; the first is the one the others are compared with.

    Args:
        hourly: as `read_hours` gives them.
        players: who plays.
        seeds: of the worlds drawn of each hour.
        jobs, progress: processes; told how many of how many worlds are done.
    """
    runs = play(hourly.chronicles, players, seeds=seeds, jobs=jobs, progress=progress)
    strata, stands_for = hourly.chosen.eventful, [one.stands_for for one in hourly.chronicles]
    by_player = {player.name: only(runs, player.name) for player in players}
    reference = by_player[players[0].name]

    def against(own: Sequence[Played], name: str) -> Estimate:
        return difference(
            own, reference, lambda run: run.metrics[name], lambda run: run.requests, strata, stands_for
        )  # fmt: skip

    return ModelReport(
        model=hourly.recorded.model,
        requests=sum(int(_counts(one).sum()) for one in hourly.chronicles),
        hours=hourly.chosen.hours,
        eventful_hours=hourly.chosen.eventful_hours,
        replayed_hours=sum(one.span.end - one.span.begin for one in hourly.chronicles) / HOUR_S,
        evidence=_evidence(hourly),
        unseen=hourly.recorded.unseen,
        recorded=_recorded(hourly),
        figures={
            name: {wanted: figure(own, wanted, strata, stands_for) for wanted in FIGURES}
            for name, own in by_player.items()
        },
        differences={name: {wanted: against(own, wanted) for wanted in DIFFERED} for name, own in by_player.items()},
        incidents=tuple(_incident(hourly, place, by_player) for place in _concerning(hourly)),
    )


def _counts(chronicle: Chronicle) -> "np.typing.NDArray[np.bool_]":
    """Tell which requests of a chronicle came after its warm-up."""
    after: np.typing.NDArray[np.bool_] = chronicle.workload.arrival_s >= chronicle.warm_s
    return after


def _evidence(hourly: Hourly) -> dict[str, float]:
    seen = np.concatenate([one.seen[:, int(one.warm_s) :] for one in hourly.chronicles], axis=1)
    return {
        endpoint.id: float(share)
        for endpoint, share in zip(hourly.recorded.endpoints, seen.mean(axis=1).tolist(), strict=True)
    }


def _recorded(hourly: Hourly) -> dict[str, float | None]:
    """Return the recorded figures; slow requests show among the streamed ones alone."""
    weights = np.concatenate([one.stands_for * _counts(one) for one in hourly.chronicles])
    failed = np.concatenate([one.demand.failed for one in hourly.chronicles])
    ttft_s = np.concatenate([one.demand.ttft_ms for one in hourly.chronicles]) / 1000
    cost_usd = np.concatenate([one.demand.cost_usd for one in hourly.chronicles])
    slow = np.nan_to_num(ttft_s) > SLOW * hourly.recorded.normals[0].ttft_s
    return {
        "failed_per_1k": _per_1k(failed, weights),
        "bad_per_1k": _per_1k(failed | slow, weights * (failed | ~np.isnan(ttft_s))),
        "cost_usd_per_1k": _per_1k(cost_usd, weights) or None,
    }


def _per_1k(
    values: "np.typing.NDArray[np.float64 | np.bool_]", weights: "np.typing.NDArray[np.float64]"
) -> float | None:
    total = float(weights.sum())
    return 1000 * float((weights * values).sum()) / total if total else None


def _concerning(hourly: Hourly) -> list[Incident]:
    """Return the incidents that began in a replayed hour."""
    return [
        one
        for one in hourly.recorded.incidents
        if any(span.begin <= one.begin < span.end for span in hourly.chosen.spans)
    ]


def _incident(hourly: Hourly, incident: Incident, by_player: Mapping[str, Sequence[Played]]) -> IncidentReport:
    place = next(i for i, span in enumerate(hourly.chosen.spans) if span.begin <= incident.begin < span.end)
    departures = {
        name: [one for run in runs if run.place == place for one in run.departures if _is_of(one, incident)]
        for name, runs in by_player.items()
    }
    found = {name: _left(several) for name, several in departures.items()}
    return IncidentReport(
        hourly.recorded.ids[incident.endpoint], incident.begin, incident.end, incident.outcome or "slow", found
    )


def _is_of(departure: Departure, incident: Incident) -> bool:
    return departure.endpoint == incident.endpoint and abs(departure.begin - incident.begin) < 1.0


def _left(departures: Sequence[Departure]) -> Left:
    gone = [one.left_s for one in departures if one.left_s is not None]
    n = max(1, len(departures))
    return Left(
        concerned=any(one.concerned for one in departures),
        left_s=median(gone) if gone else None,
        left_share=len(gone) / n,
        bad=sum(one.bad for one in departures) / n,
    )
