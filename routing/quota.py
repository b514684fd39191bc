"""A provider's rate limit as a quota, not as an outage: how much of its traffic an endpoint may take right now.

The rule of this file: evidence decides, as it does for failures. A lone 429 among answers concerns the request that it
refused and moves nothing else. Once Page's CUSUM says that the provider refuses (see `detector.py`), the endpoint takes
nothing until the Retry-After is over, or for a pause that doubles with each further one. Then it starts slowly: with a
fraction of its traffic that doubles every few seconds, as TCP does after a loss of everything (Jacobson, "Congestion
avoidance and control", 1988). A slow start soon tells a limit that is over from one that is not, and the share does not
linger where the traffic would swing to and fro.
"""

from dataclasses import dataclass, field
from math import log2

from routing.detector import FailureDetector

_REFUSING_RATE, _NORMAL_RATE = 0.5, 0.02
_FALSE_ALARM_EVERY_S = 3600.0
_TO_FORGET = 2.0
_START_SHARE = 0.05
_DOUBLING_S = 5.0
_ALL_AFTER_S = _DOUBLING_S * log2(1 / _START_SHARE)
_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 30.0
_MAX_RETRY_AFTER_S = 600.0


def _unproven() -> FailureDetector:
    """Return the doubt about a provider that has served nothing yet: its first 429 counts as the second."""
    doubt = FailureDetector(_REFUSING_RATE, _NORMAL_RATE)
    doubt.failed(hard=False)
    return doubt


@dataclass(slots=True)
class Quota:
    """The rate-limit state of one endpoint."""

    blocked_until: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    _is_limited: bool = False
    _doubt: FailureDetector = field(default_factory=_unproven)

    def refused(self, now: float, retry_after_s: float | None, attempts_per_s: float) -> None:
        """A 429 arrived, on an endpoint that gets `attempts_per_s`: a limit if the evidence says so."""
        if now >= self.blocked_until:
            self._doubt.failed(hard=False)
            threshold = self._doubt.threshold(attempts_per_s, _FALSE_ALARM_EVERY_S)
            if self._doubt.evidence < threshold:
                return
            # Hysteresis: a limit needs more to be forgotten than to be seen; and a long one no more than a short one.
            self._doubt.evidence = _TO_FORGET * threshold
        self.limited(now, retry_after_s)

    def limited(self, now: float, retry_after_s: float | None) -> None:
        """The provider limits. During a pause, only a longer Retry-After counts: the requests were sent before it
        began.
        """
        asked_s = None if retry_after_s is None else min(max(retry_after_s, 0.0), _MAX_RETRY_AFTER_S)
        if now < self.blocked_until:
            self.blocked_until = max(self.blocked_until, now + (asked_s or 0.0))
            return
        if asked_s is None:
            asked_s = self.pause_s
            self.pause_s = min(self.pause_s * 2, _MAX_PAUSE_S)
        self.blocked_until = now + asked_s
        self._is_limited = True

    def admitted(self) -> None:
        """A request was not refused, however it ended. Once nothing speaks of a limit any more, the next pause without
        a Retry-After starts short.
        """
        self._doubt.succeeded()
        if self._doubt.evidence == 0.0:
            self.pause_s = _FIRST_PAUSE_S

    def is_settling(self, now: float, settle_s: float) -> bool:
        """Tell whether the provider limits, or did so less than `settle_s` ago."""
        return self._is_limited and now - self.blocked_until < settle_s

    def share(self, now: float) -> float:
        """Return the share of its traffic the endpoint may take, in [0, 1]: 0 during a pause."""
        if now < self.blocked_until:
            return 0.0
        since_s = now - self.blocked_until
        if not self._is_limited or since_s >= _ALL_AFTER_S:
            return 1.0
        share: float = _START_SHARE * 2.0 ** (since_s / _DOUBLING_S)
        return share
