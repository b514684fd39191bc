"""When failures stop being noise: Page's CUSUM on the log-likelihood ratio of failing against normal.

Every failure adds evidence, every success takes some away, never below zero (E. S. Page, "Continuous inspection
schemes", Biometrika 1954). Evidence beyond a threshold means that the endpoint fails. A plain count of failures in a
row would eject a busy healthy endpoint by chance and leave a quiet broken one in use; here the threshold grows with
the traffic, so that a healthy endpoint is wrongly ejected about once per `false_alarm_every_s`, whatever its rate.
"""

from math import log

_HARD_WEIGHT = 1.5


class FailureDetector:
    """The evidence against one endpoint, in nats. O(1) per outcome; weights are set by `learn`."""

    __slots__ = ("_against", "_failing_rate", "_for", "_learned", "evidence")

    def __init__(self, failing_rate: float, normal_rate: float) -> None:
        self._failing_rate = failing_rate
        self.evidence = 0.0
        self._learned = (0.0, 0.0)
        self.learn(normal_rate)

    def learn(self, normal_rate: float) -> None:
        """Set the failure rate that is normal for this endpoint, in (0, 1)."""
        normal_rate = min(normal_rate, self._failing_rate / 2)
        if (normal_rate, self._failing_rate) == self._learned:
            return
        self._learned = (normal_rate, self._failing_rate)
        self._against = log(self._failing_rate / normal_rate)
        self._for = log((1 - normal_rate) / (1 - self._failing_rate))

    def adopt(self, failing_rate: float) -> None:
        """Tell failing from normal by another rate, from the next `learn` on."""
        self._failing_rate = failing_rate

    def succeeded(self) -> None:
        """A success: evidence shrinks."""
        self.evidence = max(0.0, self.evidence - self._for)

    def failed(self, *, hard: bool) -> None:
        """A failure: evidence grows, by half as much again when the endpoint could not even be reached."""
        self.evidence += self._against * (_HARD_WEIGHT if hard else 1.0)

    def retract(self) -> None:
        """A failure that was counted turned out to be none: its evidence goes."""
        self.evidence = max(0.0, self.evidence - self._against)

    def clear(self) -> None:
        """Forget: a new chance begins."""
        self.evidence = 0.0

    def threshold(self, attempts_per_s: float, false_alarm_every_s: float) -> float:
        """Return the evidence that ejects, in nats: never less than two failures' worth."""
        return max(1.8 * self._against, log(1.0 + attempts_per_s * false_alarm_every_s))
