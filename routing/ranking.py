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
            # A reversed sort keeps the order of equals.
            best_first = sorted(scored, key=lambda c: weighted(c.contributions, objective), reverse=True)
            ranked[objective] = tuple(best_first)
    return ranked
