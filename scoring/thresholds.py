"""Which thresholds may be tuned, in which steps, at what price, and when a change is safe enough to be made.

The rule of this file: pure. A change is one step of one ladder, so that no night moves far; it is accepted for false
failovers only by an exact bound, never by a point estimate. Replays that fill in the figures are `sim.replay`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, lgamma, log
from types import MappingProxyType

from routing.errors import PolicyError
from routing.policy import Policy

Value = float | int | tuple[float, ...]

CONFIDENCE = 0.95

# From strict to loose: the further right, the more readily traffic leaves, or the sooner it comes back. The order
# of the ladders and of their steps is fixed here, before any figure is seen; `in_test_order` rests on it.
LADDERS: Mapping[str, tuple[Value, ...]] = MappingProxyType(
    {
        "forecast.threshold": (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1),
        "forecast.exit_ratio": (0.2, 0.35, 0.5, 0.7, 0.9),
        "reflex.failing_rate": (0.6, 0.5, 0.4, 0.3, 0.2, 0.15),
        "reflex.false_alarm_every_s": (14_400.0, 7_200.0, 3_600.0, 1_800.0, 900.0),
        "reflex.latency_ratio": (5.0, 4.0, 3.0, 2.5, 2.0),
        "reflex.ejection_s": (30.0, 20.0, 10.0, 5.0, 3.0),
        "failback.min_hold_s": (60.0, 45.0, 30.0, 20.0, 15.0, 10.0),
        "failback.steps": (
            (0.05, 0.1, 0.2, 0.4, 0.7),
            (0.05, 0.15, 0.35, 0.65),
            (0.1, 0.3),
            (0.2, 0.5),
            (0.4,),
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Step:
    """One threshold, one step along its ladder. `strictness` is 1 for a stricter value and -1 for a looser one."""

    name: str
    before: Value
    after: Value
    strictness: int

    def __str__(self) -> str:
        return f"{self.name}: {written(self.before)} → {written(self.after)}"


@dataclass(frozen=True, slots=True)
class Objective:
    """What tuning minimises. Bad requests count 1 each per thousand; one needlessly diverted per thousand costs
    `needless_weight`, one switch a day `switch_weight`.
    """

    needless_weight: float = 0.1
    switch_weight: float = 0.01

    def loss(self, bad_per_1k: float, needless_share: float, switches_per_day: float) -> float:
        """Return the loss, in bad requests per thousand. `needless_share` is in [0, 1]."""
        return bad_per_1k + self.needless_weight * 1000 * needless_share + self.switch_weight * switches_per_day


@dataclass(frozen=True, slots=True)
class Count:
    """False failovers counted over so many provider-days of replayed history."""

    events: int
    provider_days: float

    @property
    def upper_bound(self) -> float:
        """The exact upper bound on their rate per provider-day, one-sided at 95 %; infinite without exposure."""
        return poisson_upper_bound(self.events) / self.provider_days if self.provider_days > 0 else float("inf")

    def meets(self, per_day: float) -> bool:
        """Tell whether the rate is shown to be at most `per_day`."""
        return self.upper_bound <= per_day


def poisson_upper_bound(events: int, confidence: float = CONFIDENCE) -> float:
    """Return the mean above which so few events would be seen with a chance of at most 1 - confidence.

    Garwood, "Fiducial limits for the Poisson distribution", Biometrika 1936; by bisection to 1e-9 of the bound.
    """
    low, high = float(events), 2.0 * events + 20.0
    while high - low > 1e-9 * high:
        mean = (low + high) / 2
        at_most = sum(exp(k * log(mean) - mean - lgamma(k + 1)) for k in range(events + 1)) if mean > 0 else 1.0
        low, high = (mean, high) if at_most > 1 - confidence else (low, mean)
    return high


def steps_from(policy: Policy, model_threshold: float | None) -> list[Step]:
    """Return every single step the ladders allow from `policy`.

    `model_threshold` is what the forecaster recommends, in force while the policy names no forecast threshold; without
    either, that ladder has no steps.
    """
    found = []
    for name, ladder in LADDERS.items():
        now = value_of(policy, name)
        if name == "forecast.threshold" and now is None:
            now = model_threshold
        if now is not None:
            found += _neighbours(name, now, ladder)
    return found


def _neighbours(name: str, now: Value, ladder: Sequence[Value]) -> list[Step]:
    """Return the next stricter and the next looser value; a value between two rungs has both as neighbours."""
    if now in ladder:
        place = ladder.index(now)
        around = [(place - 1, 1), (place + 1, -1)]
    elif isinstance(now, tuple):
        # Steps of a return that stand on no rung have no neighbours: which are stricter is not defined.
        return []
    else:
        rungs = [rung for rung in ladder if not isinstance(rung, tuple)]
        stricter = sum((rung < now) == (rungs[0] < rungs[-1]) for rung in rungs)
        around = [(stricter - 1, 1), (stricter, -1)]
    return [Step(name, now, ladder[place], strictness) for place, strictness in around if 0 <= place < len(ladder)]


def step_to(policy: Policy, model_threshold: float | None, name: str, after: Value) -> Step:
    """Return the step that sets one threshold to a value of somebody's choice.

    Raises PolicyError for a threshold that has no ladder, or one the policy does not name and no model recommends.
    """
    if name not in LADDERS:
        raise PolicyError(name, after, f"one of {', '.join(LADDERS)}")
    ladder, before = LADDERS[name], value_of(policy, name)
    if before is None:
        before = model_threshold
    if before is None:
        raise PolicyError(name, after, "a threshold that is in force: there is no forecaster")
    if isinstance(before, tuple) or isinstance(after, tuple):
        # The smaller the first step of a return, the stricter.
        is_stricter = isinstance(before, tuple) and isinstance(after, tuple) and after[:1] < before[:1]
    else:
        rungs = [rung for rung in ladder if not isinstance(rung, tuple)]
        is_stricter = (after < before) == (rungs[0] < rungs[-1])
    return Step(name, before, after, 1 if is_stricter else -1)


def in_test_order(steps: Sequence[Step]) -> list[Step]:
    """Return steps strictest first: those that make it stricter, by ladder, then those that make it looser."""
    names = list(LADDERS)
    return sorted(steps, key=lambda step: (-step.strictness, names.index(step.name)))


def certified(counts: Sequence[Count], per_day: float) -> int:
    """Return how many of the counts, tested one after the other in their given order, are shown to meet the budget.

    The first that does not ends the test: in a fixed sequence each hypothesis may be tested at the full level and the
    chance of even one false acceptance stays at 5 % (Maurer, Hothorn and Lehmacher, 1995).
    """
    for place, count in enumerate(counts):
        if not count.meets(per_day):
            return place
    return len(counts)


def provider_days_needed(per_day: float, events: int = 0) -> float:
    """Return over how many provider-days with so many false failovers a budget can be certified at the earliest."""
    return poisson_upper_bound(events) / per_day


def value_of(policy: Policy, name: str) -> Value | None:
    """Return a threshold by its name `group.field`; None for a forecast threshold left to the model.

    Raises PolicyError for a name no policy has.
    """
    thresholds = policy.thresholds()
    if name not in thresholds:
        raise PolicyError(name, None, f"one of {', '.join(sorted(thresholds))}")
    value = thresholds[name]
    if value is not None and not isinstance(value, int | float | tuple):
        raise PolicyError(name, value, "a threshold that is a number or a list of numbers")
    return value


def changed(policy: Policy, values: Mapping[str, Value | None]) -> Policy:
    """Return `policy` with thresholds put in by their names `group.field`.

    Raises PolicyError for a name no policy has, and for a value that is out of range or of the wrong kind.
    """
    for name, value in values.items():
        now = value_of(policy, name)
        is_sound = value is not None or name == "forecast.threshold"
        if not is_sound or isinstance(now, tuple) != isinstance(value, tuple) or isinstance(value, bool):
            raise PolicyError(name, value, "a list of numbers" if isinstance(now, tuple) else "a number")
        group, leaf = name.split(".")
        # JSON does not tell 3.0 from 3, a count does.
        if isinstance(now, int) and isinstance(value, float) and value.is_integer():
            value = int(value)  # noqa: PLW2901  # the same value in the right form
        policy = replace(policy, **{group: replace(getattr(policy, group), **{leaf: value})})
    return policy


def written(value: Value | None) -> str:
    """Return a threshold as people write it."""
    if value is None:
        return "the model's own"
    return ", ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else f"{value:g}"
