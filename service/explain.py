"""A decision in one paragraph, for people: who was chosen, why, and why the others were not."""

from collections.abc import Mapping

from routing.pipeline import Considered, Decision
from scoring.reasons import Contribution

_Reasons = Mapping[str, tuple[Contribution, ...]]
_NAMED_REASONS = 2


def _describe(considered: Considered, reasons: _Reasons) -> str:
    facts = considered.candidate.facts
    if considered.exclusion:
        return f"{facts.endpoint.id} excluded ({considered.exclusion})"
    risk = "" if facts.risk is None else f", forecast risk {facts.risk:.2f}"
    raised = [r.group for r in reasons.get(facts.endpoint.id, ())[:_NAMED_REASONS] if r.log_odds > 0]
    because = f" (raised by {' and '.join(raised)})" if risk and raised else ""
    return f"{facts.endpoint.id} {facts.state.value} with share {considered.share:.0%}{risk}{because}"


def summary(decision: Decision, reasons: _Reasons) -> str:
    """Return the paragraph; `reasons` by endpoint id tell what had raised the risk of those in alarm."""
    others = "; ".join(_describe(c, reasons) for c in decision.considered if c.candidate is not decision.chosen)
    if decision.chosen is None:
        wait = (
            f" The first rate limit ends in {decision.retry_after_s:.1f} s."
            if decision.retry_after_s is not None
            else ""
        )
        return f"No endpoint of {decision.request.model} may serve this request: {others}.{wait}"
    chosen = next(c for c in decision.considered if c.candidate is decision.chosen)
    panic = " No endpoint was healthy, so the best of the others serves." if decision.panic else ""
    rest = f" Others: {others}." if others else ""
    draw = f"drawn with {decision.draw:.3f}" if chosen.share < 1 else "the only share"
    return f"Chose {_describe(chosen, reasons)} for objective {decision.request.objective.value}, {draw}.{panic}{rest}"
