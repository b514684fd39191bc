"""Pickers: turn ranked candidates into shares that sum to one, and one uniform draw into a choice.

Shares, not a bare choice, come first: they are what the status shows, what the history logs as propensity, and what a
replay repeats.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Protocol

from routing.model import Objective
from routing.scorers import weighted
from routing.snapshot import Candidate


class Picker(Protocol):
    """Divides one request's chance among the candidates."""

    def shares(self, ranked: Sequence[Candidate], objective: Objective, favoured: int) -> list[float]:
        """Return one share per candidate; finite, non-negative, summing to 1.

        `ranked` is not empty; its first `favoured` candidates are preferred by the caller or the session.
        """


class OrderedPicker:
    """The first candidate takes what its admission allows, the next takes that of the rest, and so on.

    What nobody's admission claims goes to the most admissible candidate, the earliest among equals.
    """

    def shares(self, ranked: Sequence[Candidate], objective: Objective, favoured: int) -> list[float]:  # noqa: ARG002  # the protocol's signature
        """See Picker."""
        left = 1.0
        shares = []
        for candidate in ranked:
            share = left * candidate.facts.admission
            shares.append(share)
            left -= share
        if left > 0:
            shares[max(range(len(ranked)), key=lambda i: (ranked[i].facts.admission, -i))] += left
        return shares


class WeightedPicker:
    """Shares in proportion to score² × admission: better candidates take clearly more, none is starved of evidence.

    A preferred candidate first takes what its admission allows.
    """

    def shares(self, ranked: Sequence[Candidate], objective: Objective, favoured: int) -> list[float]:
        """See Picker."""
        shares, left = [0.0] * len(ranked), 1.0
        for i in range(favoured):
            shares[i] = left * ranked[i].facts.admission
            left -= shares[i]
        weights = [weighted(c.contributions, objective) ** 2 * c.facts.admission for c in ranked]
        total = sum(weights)
        if total <= 0:
            shares[0] += left
            return shares
        return [share + left * weight / total for share, weight in zip(shares, weights, strict=True)]


PICKER_OF: dict[Objective, Picker] = {
    Objective.ORDERED: OrderedPicker(),
    Objective.RELIABLE: OrderedPicker(),
    Objective.FASTEST: OrderedPicker(),
    Objective.CHEAPEST: OrderedPicker(),
    Objective.BALANCED: WeightedPicker(),
}


def pick(cumulative: Sequence[float], draw: float) -> int:
    """Return the index whose cumulative share first exceeds `draw`, a uniform number in [0, 1).

    Shares may add up to a little less than 1 in floating point; what is beyond goes to the last candidate with a share.
    """
    index = bisect_right(cumulative, draw)
    return index if index < len(cumulative) else bisect_left(cumulative, cumulative[-1])
