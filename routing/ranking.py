"""From facts to ranked candidates: what a snapshot holds for one model. Scores endpoints, never requests."""

from collections.abc import Sequence

from routing.model import Objective
from routing.scorers import contributions, health_score, weighted
from routing.snapshot import Candidate, Facts


def candidates(facts: Sequence[Facts]) -> list[Candidate]:
    """Score every endpoint of one model among its peers, in the order given. Raises ValueError as the scorers do."""
    scored = []
    for own in facts:
        values = contributions(own, facts)
        scored.append(Candidate(own, health_score(values), values))
    return scored


def rankings(scored: Sequence[Candidate]) -> dict[Objective, tuple[Candidate, ...]]:
    """Rank candidates for every objective, best first; equals keep their configured order, which is the order given."""
    ranked = {Objective.ORDERED: tuple(scored)}
    for objective in Objective:
        if objective is not Objective.ORDERED:
            values = [weighted(candidate.contributions, objective) for candidate in scored]
            order = sorted(range(len(scored)), key=lambda i, v=values: -v[i])  # type: ignore[misc]  # bound at once
            ranked[objective] = tuple(scored[i] for i in order)
    return ranked
