"""Tunes thresholds by replay: which single step from the policy in force would have done better, and is it safe?

The rule of this file: what is chosen on some hours is judged on others. Every step is screened on a quarter of the
recorded hours; the few best are judged on the others, where false failovers are certified strictest first, the gain has
to be beyond chance, and simulated worlds of many kinds of trouble must not get worse. A few steps that somebody asked
for need no screening: all hours judge them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from routing.policy import Policy
from scoring.artifact import Model
from scoring.thresholds import (
    Count,
    Objective,
    Step,
    certified,
    changed,
    in_test_order,
    provider_days_needed,
    steps_from,
)  # fmt: skip
from sim.replay.figures import difference, estimate, false_failovers, figure, only
from sim.replay.play import Playable, Played, Player, play
from sim.scorecard.definitions import DAY_S
from sim.scorecard.summary import Estimate

CURRENT = "current"
FIGURES = (
    "bad_per_1k", "failed_per_1k", "needless_diversion", "switches_per_day", "false_failovers_per_day",
    "cost_usd_per_1k",
)  # fmt: skip
_CONFIRMED = 3
# Choosing among many steps needs little; certifying the chosen ones needs all the time there is.
_CHOOSE_EVERY = 4

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Hours:
    """What there is to replay, with the stratum of each (eventful or quiet, per model)."""

    playables: tuple[Playable, ...]
    strata: tuple[object, ...]

    def dealt(self) -> "tuple[Hours, Hours]":
        """Deal the hours of each stratum out in turn: every fourth to choose on, the others to judge on."""
        first: list[int] = []
        second: list[int] = []
        for stratum in dict.fromkeys(self.strata):
            own = [i for i, one in enumerate(self.strata) if one == stratum]
            first += own[::_CHOOSE_EVERY]
            second += [i for place, i in enumerate(own) if place % _CHOOSE_EVERY]
        return self._some(sorted(first)), self._some(sorted(second))

    @property
    def provider_days(self) -> float:
        """How many days of preferred endpoints count in one run of each."""
        return sum(one.counted_s for one in self.playables) / DAY_S

    def _some(self, places: Sequence[int]) -> "Hours":
        return Hours(tuple(self.playables[i] for i in places), tuple(self.strata[i] for i in places))

    @property
    def stands_for(self) -> list[float]:
        """How many hours each hour represents."""
        return [one.stands_for for one in self.playables]


@dataclass(frozen=True, slots=True)
class Trial:
    """One step as it did where it was judged. `gain` is what it takes off the loss (negative: it adds), on recorded
    hours; `simulated_gain` in simulated worlds. `objection` says why it is not made, "" when nothing speaks against it.
    """

    step: Step
    figures: Mapping[str, float | None]
    count: Count
    gain: Estimate
    simulated_gain: Estimate
    objection: str


@dataclass(frozen=True, slots=True)
class Tuning:
    """The result. `step` is None when nothing is proposed, and `reason` says why. `screened` are the losses on the
    hours to choose on, by step (empty when there was no choice to make), `now` is the policy in force, `trials` are the
    steps on the hours to judge on.
    """

    reason: str
    step: Step | None = None
    now: Mapping[str, float | None] = field(default_factory=dict)
    now_count: Count = field(default_factory=lambda: Count(0, 0.0))
    screened: Mapping[str, float] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()

    @property
    def chosen(self) -> Trial | None:
        """The trial of the proposed step."""
        return next((trial for trial in self.trials if trial.step == self.step), None)


@dataclass(frozen=True, slots=True)
class Aim:
    """What tuning is after: an objective, under a budget of false failovers per provider-day."""

    objective: Objective = field(default_factory=Objective)
    budget_per_day: float = 1.0

    def loss(self, run: Played) -> float | None:
        """Return the loss of a run; None when no request counted."""
        bad, needless = run.metrics["bad_per_1k"], run.metrics["needless_diversion"]
        if bad is None or needless is None:
            return None
        return self.objective.loss(bad, needless, run.metrics["switches_per_day"] or 0.0)


def tune(
    hours: Hours,
    simulated: Hours,
    seeds: Sequence[int],
    policy: Policy,
    model: Model | None,
    aim: Aim,
    *,
    steps: Sequence[Step] | None = None,
    jobs: int = 2,
    progress: Progress | None = None,
) -> Tuning:
    """Look for a better step from `policy`.

    Args:
        hours: recorded ones; two at least.
        simulated, seeds: worlds that must not get worse, one run per scenario and seed.
        policy, model: in force.
        aim: what counts.
        steps: to be tried instead of all that the ladders allow.
        jobs, progress: processes; told the stage and how much of it is done.
    """
    tried = in_test_order(steps_from(policy, model.manifest.threshold if model else None) if steps is None else steps)
    players = {str(step): Player(str(step), changed(policy, {step.name: step.after}), model) for step in tried}
    current = Player(CURRENT, policy, model)
    choose, judge = hours.dealt() if len(tried) > _CONFIRMED else (None, hours)
    needed = provider_days_needed(aim.budget_per_day)
    if judge.provider_days < needed:
        return Tuning(reason=_too_little(judge.provider_days, hours.provider_days, needed, aim))
    kept, losses = tried, dict[str, float]()
    if choose is not None:
        runs = play(choose.playables, [current, *players.values()], jobs=jobs, progress=_told(progress, "screening"))
        losses = {name: _loss(aim, only(runs, name), choose) for name in (CURRENT, *players)}
        better = [step for step in tried if losses[str(step)] < losses[CURRENT]]
        kept = in_test_order(sorted(better, key=lambda step: losses[str(step)])[:_CONFIRMED])
    finalists = [current, *(players[str(step)] for step in kept)]
    runs = play(judge.playables, finalists, jobs=jobs, progress=_told(progress, "judging"))
    worlds: list[Played] = []
    if kept:
        told = _told(progress, "simulating")
        worlds = play(simulated.playables, finalists, seeds=seeds, jobs=jobs, progress=told)
    now = only(runs, CURRENT)
    trials = _judged(aim, kept, runs, judge, worlds, simulated)
    passed = [trial for trial in trials if not trial.objection]
    best = max(passed, key=lambda trial: trial.gain.mean or 0.0) if passed else None
    return Tuning(
        reason=_reason(best, trials, tried),
        step=best.step if best else None,
        now=_figures(now, judge),
        now_count=Count(*false_failovers(now)),
        screened=losses,
        trials=trials,
    )


def _too_little(days: float, all_days: float, needed: float, aim: Aim) -> str:
    share = days / all_days if days else 1 - 1 / _CHOOSE_EVERY
    return (
        f"{days:.2f} provider-days to judge on: at least {needed:.1f} are needed to certify {aim.budget_per_day:g} "
        f"false failovers a day, even without a single one; so at least {24 * needed / share:.0f} hours to replay"
    )


def _judged(
    aim: Aim, kept: Sequence[Step], runs: Sequence[Played], judge: Hours, worlds: Sequence[Played], simulated: Hours
) -> tuple[Trial, ...]:
    counts = [Count(*false_failovers(only(runs, str(step)))) for step in kept]
    safe = certified(counts, aim.budget_per_day)
    trials = []
    for place, (step, count) in enumerate(zip(kept, counts, strict=True)):
        gain, simulated_gain = _gain(aim, runs, str(step), judge), _gain(aim, worlds, str(step), simulated)
        trials.append(
            Trial(
                step, _figures(only(runs, str(step)), judge), count, gain, simulated_gain,
                _objection(aim, count, place < safe, gain, simulated_gain),
            )
        )  # fmt: skip
    return tuple(trials)


def _objection(aim: Aim, count: Count, is_certified: bool, gain: Estimate, simulated_gain: Estimate) -> str:
    if not is_certified:
        return (
            f"false failovers are not certified: {count.events} in {count.provider_days:.2f} provider-days, at most "
            f"{count.upper_bound:.2f} a day with 95 % confidence, and {aim.budget_per_day:g} are allowed"
            + _how_long(count, aim)
        )
    if gain.low is None or gain.low <= 0:
        return "the gain on recorded hours may be chance"
    if simulated_gain.high is not None and simulated_gain.high < 0:
        return f"simulated worlds get worse, by {-(simulated_gain.mean or 0.0):.2f}"
    return ""


def _how_long(count: Count, aim: Aim) -> str:
    """Say over how long a time so many would be few enough; nothing when a stricter step has failed already."""
    if count.meets(aim.budget_per_day):
        return ", which a stricter step has not kept"
    if count.events >= aim.budget_per_day * count.provider_days:
        return "; that is no matter of more history"
    return f"; so many need at least {provider_days_needed(aim.budget_per_day, count.events):.1f} provider-days"


def _reason(best: Trial | None, trials: Sequence[Trial], tried: Sequence[Step]) -> str:
    if best is not None:
        return f"{best.step} takes {best.gain.mean or 0.0:.2f} off the loss"
    if not tried:
        return "no threshold can be moved a step"
    if not trials:
        return f"none of {len(tried)} steps did better than the thresholds in force"
    return "; ".join(f"{trial.step}: {trial.objection}" for trial in trials)


def _loss(aim: Aim, runs: Sequence[Played], hours: Hours) -> float:
    mean = estimate(runs, aim.loss, _requests, hours.strata, hours.stands_for).mean
    return float("inf") if mean is None else mean


def _gain(aim: Aim, runs: Sequence[Played], player: str, hours: Hours) -> Estimate:
    def saved(run: Played) -> float | None:
        loss = aim.loss(run)
        return None if loss is None else -loss

    return difference(only(runs, player), only(runs, CURRENT), saved, _requests, hours.strata, hours.stands_for)


def _requests(run: Played) -> float:
    return float(run.requests)


def _figures(runs: Sequence[Played], hours: Hours) -> dict[str, float | None]:
    return {name: figure(runs, name, hours.strata, hours.stands_for).mean for name in FIGURES}


def _told(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(stage, done, total)
