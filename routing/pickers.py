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


class PowerOfTwoPicker:
    """Of two candidates drawn at random, the one with fewer requests in flight (M. Mitzenmacher, "The power of two
    choices in randomized load balancing", 2001).

    Always taking the least loaded would send everybody there until the next snapshot; two choices forgive loads that
    are a quarter of a second old. The chance of each candidate is known in advance, so it is given as a share. What a
    preferred candidate's admission allows goes there first; what nobody's admission claims goes to the most admissible,
    the least loaded among equals.
    """

    def shares(self, ranked: Sequence[Candidate], objective: Objective, favoured: int) -> list[float]:  # noqa: ARG002  # the protocol's signature
        """See Picker."""
        shares, left = [0.0] * len(ranked), 1.0
        for i in range(favoured):
            shares[i] = left * ranked[i].facts.admission
            left -= shares[i]
        loads = [candidate.facts.in_flight for candidate in ranked]
        claimed = [chance * candidate.facts.admission for chance, candidate in zip(_wins(loads), ranked, strict=True)]
        shares = [share + left * claim for share, claim in zip(shares, claimed, strict=True)]
        most = max(range(len(ranked)), key=lambda i: (ranked[i].facts.admission, -loads[i], -i))
        shares[most] += left * (1.0 - sum(claimed))
        return shares


def _wins(loads: Sequence[int]) -> list[float]:
    """Return each candidate's chance to be the less loaded of two drawn without replacement; ties are even."""
    n = len(loads)
    if n == 1:
        return [1.0]
    beaten = [sum(1.0 if own < other else 0.5 for other in loads if own <= other) - 0.5 for own in loads]
    return [2.0 * pairs / (n * (n - 1)) for pairs in beaten]


PICKER_OF: dict[Objective, Picker] = {
    Objective.ORDERED: OrderedPicker(),
    Objective.RELIABLE: OrderedPicker(),
    Objective.FASTEST: OrderedPicker(),
    Objective.CHEAPEST: OrderedPicker(),
    Objective.BALANCED: WeightedPicker(),
    Objective.LEAST_LOADED: PowerOfTwoPicker(),
}


def pick(cumulative: Sequence[float], draw: float) -> int:
    """Return the index whose cumulative share first exceeds `draw`, a uniform number in [0, 1).

    Shares may add up to a little less than 1 in floating point; what is beyond goes to the last candidate with a share.
    """
    index = bisect_right(cumulative, draw)
    return index if index < len(cumulative) else bisect_left(cumulative, cumulative[-1])
