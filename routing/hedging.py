"""Hedging: a second attempt beside one that keeps its caller waiting, so that the slowest answers cost less time.

The rule is that of Dean and Barroso ("The Tail at Scale", CACM 2013): start the second attempt when the first has
waited longer than nearly all do, and the tail shrinks for a few per cent more load. An endpoint in doubt is given less
time. It buys time with money, so a budget caps it (`ModelBudget.take_hedge`), and it never adds load where load is the
trouble.
"""

from dataclasses import dataclass
from math import exp
from statistics import NormalDist

from routing.attempts import overloaded, recovering
from routing.counts import MIN_BASELINE, Counter
from routing.health import State
from routing.model import Endpoint, RouteRequest
from routing.pipeline import Decision
from routing.policy import HedgePolicy, HedgeScope, Policy
from routing.snapshot import Candidate, Snapshot
from routing.window import Window

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Hedge:
    """Whether an attempt may be hedged: after `delay_s` seconds without a first byte, or not at all (None) and why
    not.
    """

    delay_s: float | None
    refusal: str = ""


def hedge(
    decision: Decision,
    snapshot: Snapshot,
    window: Window,
    policy: Policy,
    *,
    idempotent: bool,
    asked: bool,
    streamed: bool,
) -> Hedge:
    """Return whether, and after what wait, an attempt may be hedged. Whether it may be paid for is the budget's word,
    asked when the wait is over.

    Args:
        decision: the one that chose the attempt's endpoint; it must have chosen one.
        snapshot: the current one.
        window: the chosen endpoint's.
        policy: the one in force.
        idempotent: the request may run twice.
        asked: its caller said so, and so agreed to pay for it.
        streamed: the first byte comes before the whole reply.
    """
    chosen = decision.chosen
    if chosen is None:
        raise ValueError("expected a decision that chose an endpoint")
    refusal = _refusal(decision, chosen, snapshot, policy, idempotent=idempotent, asked=asked)
    if refusal:
        return Hedge(None, refusal)
    rule = policy.hedge
    doubted = _is_doubted(chosen, snapshot.threshold, policy)
    if doubted:
        delay_s = _quantile_s(window, rule.doubt_quantile, decision.time, streamed=streamed)
    else:
        delay_s = _late_s(window, rule, decision.time, streamed=streamed)
    if delay_s is None:
        return Hedge(None, "what is usual for the endpoint is not known")
    return Hedge(max(rule.floor_s, delay_s))


def is_evidence(window: Window, policy: HedgePolicy, waited_s: float, now: float, *, streamed: bool) -> bool:
    """Tell whether an attempt that was called off after `waited_s`, because its hedge had answered, speaks against its
    endpoint: it had waited as long as an endpoint in good standing is given.

    Without this, hedges would hide a hanging endpoint: nothing that is called off grows old.
    """
    late_s = _late_s(window, policy, now, streamed=streamed)
    return late_s is not None and waited_s >= max(policy.floor_s, late_s)


def _late_s(window: Window, policy: HedgePolicy, now: float, *, streamed: bool) -> float | None:
    usual_s = _quantile_s(window, policy.after_quantile, now, streamed=streamed)
    return None if usual_s is None else policy.after_ratio * usual_s


def _quantile_s(window: Window, fraction: float, now: float, *, streamed: bool) -> float | None:
    """Return a quantile of the endpoint's normal time to a first byte, by its mean and spread (the logarithms are about
    normal), or of the last five minutes while the endpoint is too young to have one.
    """
    baseline, first = window.baseline(now), Counter.TTFT_N if streamed else Counter.REPLY_N
    if baseline[first] < MIN_BASELINE:
        return window.latency_quantile(fraction, now, streamed=streamed)
    return exp(baseline.mean_log(first) + _NORMAL.inv_cdf(fraction) * baseline.spread(first))


def _refusal(
    decision: Decision, chosen: Candidate, snapshot: Snapshot, policy: Policy, *, idempotent: bool, asked: bool
) -> str:
    if not idempotent:
        return "the request is not idempotent"
    if not in_scope(policy.hedge, asked=asked):
        return f"hedging is {policy.hedge.scope.value}, and the caller did not ask for it"
    if decision.panic:
        return "no endpoint is healthy"
    candidates = snapshot.candidates(decision.request.model)
    if overloaded(candidates, policy.budget, decision.time):
        return "most endpoints of the model are overloaded"
    recover = recovering(candidates)
    if all(
        c.exclusion or c.candidate is chosen or c.candidate.facts.endpoint.id in recover for c in decision.considered
    ):
        return "no other endpoint is free"
    return ""


def in_scope(policy: HedgePolicy, *, asked: bool) -> bool:
    """Tell whether the policy lets such a caller's requests be hedged."""
    return policy.scope is HedgeScope.ALWAYS or (policy.scope is HedgeScope.ASKED and asked)


def _is_doubted(chosen: Candidate, threshold: float | None, policy: Policy) -> bool:
    facts = chosen.facts
    if facts.state not in (State.ACTIVE, State.UNKNOWN):
        return True
    # From where a forecast would no longer let it return, not only from where it sends traffic away.
    return threshold is not None and facts.risk is not None and facts.risk >= threshold * policy.forecast.exit_ratio


def expected_cost_usd(endpoint: Endpoint, request: RouteRequest, usual_output_tokens: float) -> float:
    """Return what a second attempt there is expected to cost: nothing where no price is known."""
    tokens_usd = request.input_tokens * endpoint.input_usd_per_mtok + usual_output_tokens * endpoint.output_usd_per_mtok
    return tokens_usd / 1e6
