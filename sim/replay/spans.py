"""Which hours of a history are replayed, and how many each of them stands for.

The rule of this file: hours in which something failed or left service come first, quiet ones are sampled, and every
hour's weight is the inverse of the chance that it was drawn, so that rates over all hours stay unbiased.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analytics.replay import Hour
from sim.replay.chronicle import Span

HOUR_S = 3600.0
# The engine compares with the half hour before.
_WARM_S = 1800.0
# At most this share of the hours goes to eventful ones while there are quiet ones left: needless moves happen there.
_EVENTFUL_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Chosen:
    """The spans in order of time. `eventful[i]` is of `spans[i]`; `hours` and `eventful_hours` are what there was."""

    spans: tuple[Span, ...]
    eventful: tuple[bool, ...]
    hours: int
    eventful_hours: int


def choose_spans(
    hours: Sequence[Hour], since: float, until: float, *, most: int, seed: int = 0, warm_s: float = _WARM_S
) -> Chosen:
    """Choose at most `most` (>= 2) of the hours of [since, until). The same arguments choose the same hours."""
    rng = np.random.default_rng(seed)
    eventful = [hour.number for hour in hours if hour.eventful]
    quiet = [hour.number for hour in hours if not hour.eventful]
    room = (
        len(eventful) if len(hours) <= most else max(most - len(quiet), min(len(eventful), int(_EVENTFUL_SHARE * most)))
    )
    found: list[tuple[Span, bool]] = []
    for numbers, wanted, is_eventful in ((eventful, room, True), (quiet, most - room, False)):
        taken = sorted(rng.permutation(numbers)[:wanted].tolist())
        for number in taken:
            begin = since + number * HOUR_S
            span = Span(max(since, begin - warm_s), begin, min(until, begin + HOUR_S), len(numbers) / len(taken))
            found.append((span, is_eventful))
    found.sort(key=lambda one: one[0].begin)
    return Chosen(
        tuple(span for span, _ in found), tuple(is_eventful for _, is_eventful in found), len(hours), len(eventful)
    )
