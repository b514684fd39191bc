"""Did the story happen? Each check is one sentence that held or did not, with the figures it rests on.

The rule of this file: it is pure. It judges by the history, and by what the callers themselves saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sim.demo.evidence import Evidence, Move
from sim.demo.load import Sent
from sim.demo.story import Story
from sim.faults import Fault

MAX_FAILED_SHARE = 0.001
_DEPARTED = ("degraded", "ejected")


@dataclass(frozen=True, slots=True)
class Check:
    """One sentence of the story, whether it held, and the figures."""

    sentence: str
    held: bool
    figures: str


def departure(evidence: Evidence, fault: Fault, endpoint: str, until_s: float) -> Move | None:
    """The first time `endpoint` left service in [start of `fault`, until_s)."""
    return next(
        (m for m in evidence.moves_of(endpoint) if m.after in _DEPARTED and fault.at_s <= m.t_s < until_s), None
    )


def judge(story: Story, evidence: Evidence, sent: Sequence[Sent], began: float) -> list[Check]:
    """Judge the run. `sent` is what the callers saw, `began` the unix time at which the scenario's clock started."""
    seen = _Seen(story, evidence, sent, began)
    return [
        seen.ramp_was_left_in_time(),
        seen.forecast_moved_first(),
        seen.outage_was_not_noticed(),
        seen.storm_was_avoided(),
        *(seen.came_back_in_steps(fault) for fault in (story.ramp, story.outage)),
        seen.quota_came_back(),
        seen.callers_were_served(),
        seen.history_is_whole(),
    ]


@dataclass(frozen=True, slots=True)
class _Seen:
    story: Story
    evidence: Evidence
    sent: Sequence[Sent]
    began: float

    def ramp_was_left_in_time(self) -> Check:
        story, endpoint = self.story, self.story.endpoint(self.story.ramp)
        look_s = max(1.5, 4.0 * story.scale)
        usual = self.evidence.share(endpoint, -story.warm_up_s, story.ramp.at_s)
        left = self.evidence.share(endpoint, story.hard_outage_s - look_s, story.hard_outage_s)
        return Check(
            f"traffic left {story.ramp.provider} before its outage: its share fell to half or less",
            usual is not None and left is not None and usual > 0 and left <= usual / 2,
            f"share {_percent(usual)} while quiet, {_percent(left)} in the {look_s:.1f} s before the outage",
        )

    def forecast_moved_first(self) -> Check:
        story, ramp = self.story, self.story.ramp
        move = departure(self.evidence, ramp, story.endpoint(ramp), story.hard_outage_s)
        figures = "nobody moved it before the outage"
        if move is not None:
            lead_s = story.hard_outage_s - move.t_s
            figures = f"{move.actor} moved it {lead_s:.1f} s before the outage: {move.cause}"
        return Check(
            f"the forecast moved traffic off {ramp.provider}, before latency or errors did",
            move is not None and move.actor == "forecast",
            figures,
        )

    def outage_was_not_noticed(self) -> Check:
        fault, endpoint = self.story.outage, self.story.endpoint(self.story.outage)
        before = self._share_just_before(fault)
        ejected = next(
            (m for m in self.evidence.moves_of(endpoint) if m.after == "ejected" and fault.at_s <= m.t_s < fault.end_s),
            None,
        )
        failed = self._failed_during(fault)
        after = "never ejected" if ejected is None else f"ejected after {ejected.t_s - fault.at_s:.2f} s"
        return Check(
            f"{fault.provider} went out without warning, was ejected, and no caller saw a failure",
            ejected is not None and bool(before) and failed == 0,
            f"share {_percent(before)} just before, {after}, {failed} failures seen by callers",
        )

    def storm_was_avoided(self) -> Check:
        fault, endpoint = self.story.storm, self.story.endpoint(self.story.storm)
        before = self._share_just_before(fault)
        limited = next(
            (m for m in self.evidence.moves_of(endpoint) if m.event == "limited" and fault.active_at(m.t_s)), None
        )
        during = None if limited is None else self.evidence.share(endpoint, limited.t_s, fault.end_s)
        failed = self._failed_during(fault)
        after = "never limited" if limited is None else f"limited after {limited.t_s - fault.at_s:.2f} s"
        figures = f"share {_percent(before)} just before, {after}, then {_percent(during)}"
        return Check(
            f"{fault.provider} answered 429, its quota was respected, the next took over, and no caller saw a failure",
            bool(before) and during is not None and during <= (before or 0.0) / 2 and failed == 0,
            f"{figures}; {failed} failures seen by callers",
        )

    def came_back_in_steps(self, fault: Fault) -> Check:
        moves = [move for move in self.evidence.moves_of(self.story.endpoint(fault)) if move.t_s >= fault.at_s]
        entered = [i for i, move in enumerate(moves) if move.after == "canary" and move.before != "canary"]
        last = moves[entered[-1] :] if entered else []
        steps = sum(move.event == "step_proven" for move in last)
        back = next((move for move in last if move.event == "plan_done"), None)
        state = moves[-1].after if moves else "unmoved"
        figures = f"{steps + 1} canary steps, " if last else "no canary, "
        figures += f"active {back.t_s - fault.end_s:.1f} s after its trouble" if back else f"at the end {state}"
        return Check(
            f"{fault.provider} came back by canary, step by step, to active",
            back is not None and steps > 0 and state == "active",
            figures,
        )

    def quota_came_back(self) -> Check:
        fault = self.story.storm
        moves = [move for move in self.evidence.moves_of(self.story.endpoint(fault)) if move.t_s >= fault.at_s]
        state = moves[-1].after if moves else "unmoved"
        since = f" {moves[-1].t_s - fault.end_s:.1f} s after the storm" if moves else ""
        return Check(f"{fault.provider} is active again once its limit is over", state == "active", f"{state}{since}")

    def callers_were_served(self) -> Check:
        failed = [sent for sent in self.sent if sent.error]
        example = f", for example {failed[0].request_id}: {failed[0].error}" if failed else ""
        return Check(
            f"callers saw at most {MAX_FAILED_SHARE:.1%} of their requests fail",
            bool(self.sent) and len(failed) <= MAX_FAILED_SHARE * len(self.sent),
            f"{len(failed)} of {len(self.sent)} failed{example}",
        )

    def history_is_whole(self) -> Check:
        rows, ids = self.evidence.rows, {sent.request_id for sent in self.sent}
        missing, foreign = ids - rows.keys(), rows.keys() - ids
        repeated = [request_id for request_id in ids if rows.get(request_id, 0) > 1]
        return Check(
            "the history holds every request of the callers exactly once, and no other",
            bool(ids) and not missing and not foreign and not repeated,
            f"{len(ids)} sent, {len(missing)} missing, {len(repeated)} repeated, {len(foreign)} foreign",
        )

    def _share_just_before(self, fault: Fault) -> float | None:
        return self.evidence.share(self.story.endpoint(fault), fault.at_s - 1.0, fault.at_s)

    def _failed_during(self, fault: Fault) -> int:
        since, until = self.began + fault.at_s, self.began + fault.end_s
        return sum(1 for sent in self.sent if sent.error and sent.ended >= since and sent.started <= until)


def _percent(share: float | None) -> str:
    return "no requests" if share is None else f"{share:.0%}"
