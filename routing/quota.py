"""A provider's rate limit as a quota, not as an outage: how much of its traffic an endpoint may take right now.

After a 429 the endpoint takes nothing until the provider's Retry-After, or for a pause that doubles with each further
429. When another one follows soon after that, its share is halved and grows again, as TCP does after loss:
multiplicative decrease, additive increase (Chiu and Jain, 1989). A lone 429 among thousands of answers costs its pause
alone.
"""

from dataclasses import dataclass

_DECREASE = 0.5
_FLOOR = 0.05
_INCREASE_PER_S = 0.1
_SOON_S = 10.0
_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 30.0
_MAX_RETRY_AFTER_S = 600.0


@dataclass(slots=True)
class Quota:
    """The rate-limit state of one endpoint."""

    blocked_until: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    _share: float = 1.0
    _soon_until: float = 0.0

    def limited(self, now: float, retry_after_s: float | None) -> None:
        """A 429 arrived. During a pause, only a longer Retry-After counts: the requests were sent before it began."""
        asked_s = None if retry_after_s is None else min(max(retry_after_s, 0.0), _MAX_RETRY_AFTER_S)
        if now < self.blocked_until:
            self.blocked_until = max(self.blocked_until, now + (asked_s or 0.0))
            self._soon_until = self.blocked_until + _SOON_S
            return
        share, is_soon = self.share(now), now < self._soon_until
        self._share = max(_FLOOR, share * _DECREASE) if is_soon else share
        if asked_s is None:
            asked_s = self.pause_s
            self.pause_s = min(self.pause_s * 2, _MAX_PAUSE_S)
        self.blocked_until = now + asked_s
        self._soon_until = self.blocked_until + _SOON_S

    def succeeded(self, now: float) -> None:
        """A request was served again: once that has lasted, the next pause without a Retry-After starts short."""
        if now >= self._soon_until:
            self.pause_s = _FIRST_PAUSE_S

    def share(self, now: float) -> float:
        """Return the share of its traffic the endpoint may take, in [0, 1]: 0 during a pause."""
        if now < self.blocked_until:
            return 0.0
        return min(1.0, self._share + _INCREASE_PER_S * (now - self.blocked_until))
