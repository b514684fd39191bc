"""What an alarm may do: how much of its traffic the endpoint keeps, and which alarms only try their hand.

The rule of this file: an alarm is an episode. What it may do is drawn once, when it begins, from a number that comes
in, and stays until it ends; the probability of that draw is recorded, so that skill stays measurable although alarms
change what happens (inverse propensity weighting; Horvitz and Thompson, 1952). A router that has come to distrust the
forecasts of an endpoint may leave it and return more than once in an episode; the draw holds for all of it.
"""

from dataclasses import dataclass
from enum import StrEnum

from scoring.alarms import EXIT_RATIO

CANARY_SHARE = 0.1
# What an endpoint in alarm keeps at the least, so that evidence keeps coming, and at the most: clearly less than half,
# because with shares near one half chance alone swings the majority to and fro.
FLOOR, MOST_KEPT = 0.1, 0.3
# The share of alarms that only try their hand.
EXPLORE = 0.05


class Mode(StrEnum):
    """ACT moves what the risk asks for. CANARY moves a tenth only: what follows shows whether the alarm was right."""

    ACT = "act"
    CANARY = "canary"


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm in force: when it began, what it may do, and with which probability that was drawn."""

    since: float
    mode: Mode
    propensity: float


def share_kept(risk: float, threshold: float, floor: float, mode: Mode = Mode.ACT) -> float:
    """Return the share in [floor, 1] of its usual traffic an endpoint at `risk` keeps.

    All of it up to the exit risk (EXIT_RATIO of the threshold), `floor` from halfway between threshold and certainty
    on, and between them MOST_KEPT, less the higher the risk is. A CANARY alarm leaves all but a tenth.
    """
    low, high = threshold * EXIT_RATIO, (1 + threshold) / 2
    if risk <= low:
        return 1.0
    if mode is Mode.CANARY:
        return max(floor, 1.0 - CANARY_SHARE)
    return floor + max(0.0, MOST_KEPT - floor) * max(0.0, (high - risk) / (high - low))


class AlarmDesk:
    """The alarms in force. `explore` is the share in [0, 1] of alarms that are CANARY."""

    __slots__ = ("_alarms", "_explore")

    def __init__(self, explore: float) -> None:
        self._alarms: dict[str, Alarm] = {}
        self._explore = explore

    def step(self, endpoint: str, risk: float | None, threshold: float, now: float, draw: float) -> Alarm | None:
        """Return the alarm of an endpoint whose risk is now `risk` (None without a forecast), None when none is in
        force; `draw` in [0, 1) decides what an alarm that begins may do.
        """
        alarm = self._alarms.get(endpoint)
        if alarm is None and risk is not None and risk >= threshold:
            canary = draw < self._explore
            propensity = self._explore if canary else 1 - self._explore
            alarm = self._alarms[endpoint] = Alarm(now, Mode.CANARY if canary else Mode.ACT, propensity)
        elif alarm is not None and (risk is None or risk < threshold * EXIT_RATIO):
            del self._alarms[endpoint]
            return None
        return alarm
