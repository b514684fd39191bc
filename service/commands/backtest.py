"""`routecast backtest`: what the recorded weeks would have been under other policies."""

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from analytics.store import connect
from scoring.threshold_store import Change, Status, loaded
from scoring.thresholds import changed, written
from service.commands.common import ERR, OUT, InputError
from service.commands.replaying import Days, Hours, MaybeConfig, MaybeData, Standing, read_all_hours, shown, standing
from sim.policies import NAMES
from sim.replay.backtest import backtest as replay
from sim.replay.page import as_json, headline, page
from sim.replay.play import Player

CURRENT, REFLEX, PROPOSED = "current", "without forecast", "proposed"
_BASELINES = ("static", "consecutive", "envoy", "litellm", "tuned-breaker")
_OUT = Path("backtest")


def backtest(
    *,
    config: MaybeConfig = None,
    data: MaybeData = None,
    days: Days = 30.0,
    hours: Hours = 24,
    draws: Annotated[int, Parameter(help="Worlds drawn of each hour where the evidence leaves room.")] = 2,
    policies: Annotated[str, Parameter(help="Baselines beside ours, separated by commas.")] = ",".join(_BASELINES),
    jobs: Annotated[int, Parameter(help="Processes.")] = 2,
    out: Annotated[Path, Parameter(help="Directory of backtest.html and backtest.json.")] = _OUT,
) -> None:
    """Replay the history under the current policy, the proposed one and baselines; write a page and JSON."""
    service = standing(config, data)
    names = tuple(dict.fromkeys(name for name in policies.split(",") if name))
    unknown = [name for name in names if name not in NAMES]
    if unknown or draws < 1 or jobs < 1:
        raise InputError(
            f"--policies {policies!r}: expected some of {', '.join(NAMES)}; --draws and --jobs of 1 or more"
        )
    proposal = next((one for one in reversed(service.store.changes()) if one.status is Status.PROPOSED), None)
    players = _players(service, proposal, names)
    with connect(service.data_dir / "history", threads=1) as connection:
        since, until, all_hours = read_all_hours(connection, service, days, hours)
    if not all_hours:
        return
    reports = []
    with shown() as progress:
        for hourly in all_hours:
            told = partial(progress, hourly.recorded.model)
            reports.append(replay(hourly, players, seeds=range(draws), jobs=jobs, progress=told))
    notes = _notes(service, proposal)
    out.mkdir(parents=True, exist_ok=True)
    (out / "backtest.html").write_text(page(reports, since, until, notes), encoding="utf-8")
    (out / "backtest.json").write_text(as_json(reports, since, until, notes), encoding="utf-8")
    for report in reports:
        OUT.print(headline(report), soft_wrap=True, highlight=False)
    ERR.print(f"{out / 'backtest.html'}, {out / 'backtest.json'}", soft_wrap=True, highlight=False)


def _players(service: Standing, proposal: Change | None, baselines: tuple[str, ...]) -> list[Player]:
    policy = service.in_force.policy
    players = [Player(CURRENT, policy, service.model)]
    if proposal is not None:
        moved = {name: loaded(after) for name, (_, after) in proposal.changed.items()}
        players.append(Player(PROPOSED, changed(policy, moved), service.model))
    if service.model is not None:
        players.append(Player(REFLEX, policy))
    return players + [Player(name, base=name) for name in baselines]


def _notes(service: Standing, proposal: Change | None) -> list[str]:
    change, notes = service.in_force.change, []
    notes.append(
        f"Current: the {'configured' if service.config else 'shipped'} policy"
        + (f" with change {change.id} of thresholds" if change else "")
        + (f" and forecaster {service.model.manifest.version}." if service.model else ", without forecasts.")
    )
    if proposal is not None:
        moves = (
            f"{name} from {written(loaded(a))} to {written(loaded(b))}" for name, (a, b) in proposal.changed.items()
        )
        notes.append(f"Proposed ({proposal.id}): {', '.join(moves)}.")
    notes.append("Baselines play by their published defaults.")
    return notes
