"""What backtest and tuning share: whose history, which policy is in force over it, and which hours are replayed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import duckdb
from cyclopts import Parameter
from rich.progress import Progress

from analytics.replay import first_and_last, replayable_models
from routing.errors import PolicyError
from routing.policy import Policy
from scoring.artifact import Model
from scoring.registry import Registry
from scoring.threshold_store import InForce, ThresholdStore, ThresholdStoreError
from service.commands.common import ERR, OUT, FailureError, InputError
from service.config import Config
from service.config_file import load
from sim.replay.backtest import Hourly, read_hours
from sim.replay.recorded import NothingToReplayError

DATA = Path("data")
MaybeConfig = Annotated[
    Path | None, Parameter(help="The service's configuration: its policy, order of endpoints and data_dir.")
]
MaybeData = Annotated[Path | None, Parameter(help="The data directory, if it is not the configuration's.")]
Days = Annotated[float, Parameter(help="How many days back.")]
Hours = Annotated[int, Parameter(help="At most so many hours are replayed, eventful ones first.")]


@dataclass(frozen=True, slots=True)
class Standing:
    """The service a history belongs to: its directory, its policy as configured and with the change in force, its model
    (None without forecasts), and its configuration, if it was given.
    """

    data_dir: Path
    configured: Policy
    in_force: InForce
    store: ThresholdStore
    model: Model | None
    config: Config | None

    def order(self, model: str) -> tuple[str, ...]:
        """Return the configured order of a model's endpoints; empty when no configuration tells."""
        by_model = self.config.catalogue().by_model if self.config else {}
        return tuple(endpoint.id for endpoint in by_model.get(model, ()))


def data_dir_of(settings: Config | None, data: Path | None) -> Path:
    """Return whose history and changes are meant."""
    return data or (settings.data_dir if settings else DATA)


def standing(config: Path | None, data: Path | None) -> Standing:
    """Find out what is in force. Raises ConfigError for a bad configuration, FailureError for a damaged record."""
    settings = load(config) if config else None
    data_dir = data_dir_of(settings, data)
    configured = settings.policy.policy() if settings else Policy()
    store = ThresholdStore(data_dir)
    has_forecasts = settings is None or settings.scoring.enabled
    model = Registry(data_dir).champion().model if has_forecasts else None
    try:
        in_force = store.in_force(configured)
    except (ThresholdStoreError, PolicyError) as error:
        raise FailureError(str(error)) from error
    return Standing(data_dir, configured, in_force, store, model, settings)


def read_all_hours(
    connection: duckdb.DuckDBPyConnection, service: Standing, days: float, most_hours: int
) -> tuple[float, float, list[Hourly]]:
    """Read the hours of every model of the last `days` days; return them after the first and last moment with traffic.

    Without anything to replay it says so and returns no hours: a young service is no error to a nightly job.
    """
    if days <= 0 or most_hours < 2:
        raise InputError("expected --days above 0 and --hours of 2 or more")
    now = time.time()
    period = first_and_last(connection, now - days * 86_400, now)
    if period is None:
        what = f"{service.data_dir / 'history'}: no requests in the last {days:g} days, nothing to replay"
        OUT.print(what, soft_wrap=True, highlight=False)
        return now, now, []
    since, until = period
    models = replayable_models(connection, since, until)
    found: list[Hourly] = []
    share = max(2, most_hours // max(1, len(models)))
    deadline_s = service.in_force.policy.attempts.deadline_s
    for model in models:
        try:
            found.append(
                read_hours(
                    connection, model, since, until,
                    order=service.order(model), most_hours=share, deadline_s=deadline_s,
                )
            )  # fmt: skip
        except NothingToReplayError as error:
            ERR.print(f"left out: {error}", soft_wrap=True, highlight=False)
    return since, until, found


@contextmanager
def shown() -> Iterator[Callable[[str, int, int], None]]:
    """Show progress on standard error within the block: call with a stage, how much is done, and of how much."""
    with Progress(console=ERR, transient=True) as progress:
        tasks = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield update
