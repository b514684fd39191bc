"""How far forecasts are believed of one endpoint, by what came of the last ones that moved its traffic.

The rule of this file: a false alarm makes the next one harder to raise there, one that came true takes half of that
back, and time heals the rest. So an endpoint that looks alarming by nature costs a few diversions and no more, while
those that forecasts know well are left as early as ever. The threshold follows its own mistakes as in adaptive
conformal inference (Gibbs and Candès, NeurIPS 2021), in log-odds, where a step means the same at any threshold.
"""

from dataclasses import dataclass
from math import exp

_STEP = 1.5
_HALVED_AFTER_S = 7200.0


@dataclass(slots=True)
class Trust:
    """The record of one endpoint: `_debt` false alarms not yet made up for, as of `_since`."""

    _debt: float = 0.0
    _since: float = 0.0

    def bar(self, threshold: float, now: float) -> float:
        """Return the risk in (0, 1) that moves traffic here, or ends that, where `threshold` in (0, 1) does elsewhere:
        never less.
        """
        debt = self._debt_at(now)
        if debt == 0.0:
            return threshold
        return 1.0 / (1.0 + (1.0 - threshold) / threshold * exp(-_STEP * debt))

    def refuted(self, now: float) -> None:
        """What was forecast did not come."""
        self._debt, self._since = self._debt_at(now) + 1.0, now

    def confirmed(self, now: float) -> None:
        """What was forecast came."""
        self._debt, self._since = self._debt_at(now) / 2.0, now

    def _debt_at(self, now: float) -> float:
        left: float = 0.5 ** max(0.0, (now - self._since) / _HALVED_AFTER_S)
        return self._debt * left
