"""From facts to ranked candidates: what a snapshot holds for one model. Scores endpoints, never requests.

Scored and ranked when first asked for: most snapshots of a quiet second are never read, and few of all objectives.
"""

from collections.abc import Iterator, Mapping, Sequence

from routing.model import Objective
from routing.scorers import contributions, health_score, weighted
from routing.snapshot import Candidate, Facts


class Ranking(Mapping[Objective, tuple[Candidate, ...]]):
    """The candidates of one model for every objective, best first; equals keep the order given, which is the
    configured one.

    Reading it raises ValueError as the scorers do. What was read once is kept, and reads never change an answer.
    """

    __slots__ = ("_facts", "_ranked")

    def __init__(self, facts: Sequence[Facts]) -> None:
        self._facts = tuple(facts)
        self._ranked: dict[Objective, tuple[Candidate, ...]] = {}

    def __getitem__(self, objective: Objective) -> tuple[Candidate, ...]:
        ranked = self._ranked.get(objective)
        if ranked is None:
            ranked = self._ranked[objective] = self._rank(objective)
        return ranked

    def __iter__(self) -> Iterator[Objective]:
        return iter(Objective)

    def __len__(self) -> int:
        return len(Objective)

    def _rank(self, objective: Objective) -> tuple[Candidate, ...]:
        if objective is Objective.ORDERED:
            return tuple(self._score(own) for own in self._facts)
        # A reversed sort keeps the order of equals.
        return tuple(sorted(self[Objective.ORDERED], key=lambda c: weighted(c.contributions, objective), reverse=True))

    def _score(self, own: Facts) -> Candidate:
        values = contributions(own, self._facts)
        return Candidate(own, health_score(values), values)
