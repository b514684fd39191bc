"""The service's one clock: unix time that never jumps.

Windows, deadlines and ejections would break if the system clock were set while the service runs, and history needs
unix time. So the wall clock is read once, and the monotonic clock carries it on. The monotonic clock is shared by all
processes of a machine.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Anything that tells the time in unix-like seconds without ever going back."""

    def now(self) -> float:
        """Return the current time in seconds."""


class SteadyClock:
    """Unix time as of construction, carried on by the monotonic clock. Microsecond steps, so that history keeps it
    exactly; counted in whole ones, for to round a float to them costs more than to read the clock.
    """

    def __init__(self) -> None:
        self._offset_us = (time.time_ns() - time.monotonic_ns()) // 1000

    def now(self) -> float:
        """Return the current time in seconds."""
        return (time.monotonic_ns() // 1000 + self._offset_us) / 1e6
