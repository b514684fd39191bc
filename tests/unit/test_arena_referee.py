"""Every rule of the referee, broken on purpose: by an arena that misbehaves, or by a policy that does."""

# ruff: noqa: ARG002 - a Policy takes what the protocol gives it

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import pytest

from routing.outcomes import Outcome
from sim.arena.policy import ArenaRequest, Attempted, Limits, Policy, RetryLimit
from sim.arena.referee import ArenaInvariantError, Referee
from tests.policy_driver import ERROR, OK, ended, request

REQUEST = request(patience_s=60.0)
LIMITS = Limits(max_attempts=3, retries=RetryLimit(share=0.2, floor=2.0, window_s=10.0))


class Puppet(Policy):
    """Answers what it is told to."""

    name = "puppet"
    stall_timeout_s = 5.0
    probe_timeout_s = 2.0
    tick_s = 1.0
    limits = LIMITS

    def __init__(self) -> None:
        self.endpoint: int | None = 0
        self.delay_s: float | None = 0.0
        self.patient_s = 10.0
        self.rerouting = False
        self.probes: list[int] = []
        self.warning: list[int] = []

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        return self.endpoint

    def wait_s(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
        return self.delay_s

    def patience_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float:
        return self.patient_s

    def hedge_after_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float | None:
        return self.delay_s

    def hedge(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        return self.endpoint

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
        return self.delay_s

    def is_reroute(self, made: Sequence[Attempted], now: float) -> bool:
        return self.rerouting

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Nothing to note."""

    def first_token(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Nothing to note."""

    def finished(self, attempted: Attempted, now: float) -> None:
        """Nothing to note."""

    def tick(self, now: float) -> Sequence[int]:
        return self.probes

    def probed(self, attempted: Attempted, now: float) -> None:
        """Nothing to note."""

    def warned(self) -> Collection[int]:
        return self.warning


class Play:
    """An arena that can be made to do anything."""

    def __init__(self) -> None:
        self.puppet = Puppet()
        self.referee = Referee(self.puppet, 2)
        self.tried: list[int] = []
        self.made: list[Attempted] = []

    def route(self, now: float, to: int = 0, about: ArenaRequest = REQUEST) -> None:
        self.puppet.endpoint = to
        self.referee.route(about, self.tried, now, 0.5)

    def send(self, now: float, to: int = 0, attempt_id: str = "", about: ArenaRequest = REQUEST) -> None:
        self.route(now, to, about)
        self._start(now, to, attempt_id or f"a{len(self.tried)}")

    def hedge(self, now: float, to: int = 1, about: ArenaRequest = REQUEST) -> None:
        self.puppet.endpoint = to
        self.referee.hedge(about, self.tried, now, 0.5)
        self._start(now, to, f"a{len(self.tried)}")

    def _start(self, now: float, to: int, attempt_id: str) -> None:
        self.referee.started(to, attempt_id, now)
        self.tried.append(to)

    def token(self, now: float, attempt_id: str = "a0", at: int = 0) -> None:
        self.referee.first_token(at, attempt_id, now)

    def end(
        self, now: float, outcome: Outcome = ERROR, attempt_id: str = "a0", at: int = 0, ttft_s: float | None = None
    ) -> None:
        self.made.append(ended(at, outcome, attempt_id, ttft_s))
        self.referee.finished(self.made[-1], now)

    def retry(self, now: float, about: ArenaRequest = REQUEST) -> None:
        self.referee.retry(about, self.made, now, 0.5)

    def tick(self, now: float) -> None:
        self.referee.tick(now)


def test_a_request_that_is_retried_and_hedged_by_the_rules_passes() -> None:
    play = Play()
    play.send(0.0)
    play.end(1.0)
    play.retry(1.0)
    play.send(1.0, to=1)
    play.hedge(2.0, to=0)
    play.token(3.0, "a2", at=0)
    play.end(3.0, Outcome.CANCELLED, "a1", at=1)
    play.end(4.0, OK, "a2", at=0)
    play.puppet.probes = [0, 1]
    play.tick(5.0)
    play.referee.probed(ended(0), 5.5)
    play.tick(6.0)


def after_the_deadline(play: Play) -> None:
    play.send(60.0)


def hedged_after_the_deadline(play: Play) -> None:
    play.send(0.0)
    play.hedge(60.0)


def nowhere(play: Play) -> None:
    play.send(0.0, to=2)


def time_goes_back(play: Play) -> None:
    play.tick(2.0)
    play.send(1.0)


def time_is_none(play: Play) -> None:
    play.tick(math.nan)


def too_often(play: Play) -> None:
    for number in range(4):
        play.send(float(number))
        play.end(number + 0.5, attempt_id=f"a{number}")


def again_after_the_first_token(play: Play) -> None:
    play.send(0.0)
    play.token(1.0)
    play.end(2.0, Outcome.STALLED, ttft_s=1.0)
    play.send(2.0, to=1)


def retried_after_the_first_token(play: Play) -> None:
    play.send(0.0)
    play.token(1.0)
    play.end(2.0, Outcome.STALLED, ttft_s=1.0)
    play.retry(2.0)


def while_being_served(play: Play) -> None:
    play.send(0.0)
    play.send(1.0, to=1)


def retried_while_being_served(play: Play) -> None:
    play.send(0.0)
    play.retry(1.0)


def another_history(play: Play) -> None:
    play.send(0.0)
    play.end(1.0)
    play.tried = [1]
    play.send(1.0)


def hedged_twice(play: Play) -> None:
    play.send(0.0)
    play.hedge(1.0)
    play.end(2.0, attempt_id="a1", at=1)
    play.hedge(3.0)


def hedged_after_its_answer(play: Play) -> None:
    play.send(0.0)
    play.token(1.0)
    play.hedge(2.0)


def hedged_without_an_attempt(play: Play) -> None:
    play.send(0.0)
    play.end(1.0)
    play.hedge(1.0)


def hedged_where_it_waits(play: Play) -> None:
    play.send(0.0)
    play.hedge(1.0, to=0)


def hedged_though_it_does_harm(play: Play) -> None:
    once = replace(REQUEST, idempotent=False)
    play.send(0.0, about=once)
    play.hedge(1.0, about=once)


def two_answers(play: Play) -> None:
    play.send(0.0)
    play.hedge(1.0)
    play.token(2.0)
    play.token(2.5, "a1", at=1)


def a_loser_that_goes_on(play: Play) -> None:
    play.send(0.0)
    play.hedge(1.0)
    play.token(2.0)
    play.end(3.0, OK, "a1", at=1, ttft_s=1.0)


def called_off_for_nobody(play: Play) -> None:
    play.send(0.0)
    play.end(1.0, Outcome.CANCELLED)


def an_answer_without_a_token(play: Play) -> None:
    play.send(0.0)
    play.end(1.0, OK)


def a_token_forgotten(play: Play) -> None:
    play.send(0.0)
    play.token(0.5)
    play.end(1.0, Outcome.TIMEOUT)


def a_token_after_the_end(play: Play) -> None:
    play.send(0.0)
    play.end(1.0)
    play.token(1.5)


def ends_twice(play: Play) -> None:
    play.send(0.0)
    play.end(1.0)
    play.end(1.0)


def takes_for_ever(play: Play) -> None:
    play.send(0.0)
    play.referee.finished(ended(0, ERROR, "a0", latency_s=math.inf), 1.0)


def unchosen(play: Play) -> None:
    play.referee.started(0, "a0", 0.0)


def refused_but_sent(play: Play) -> None:
    play.puppet.endpoint = None
    play.referee.route(REQUEST, [], 0.0, 0.5)
    play.referee.started(0, "a0", 0.0)


def the_same_id(play: Play) -> None:
    play.send(0.0, attempt_id="a")
    play.end(1.0, attempt_id="a")
    play.send(1.0, attempt_id="a")


def waits_for(delay_s: float) -> Callable[[Play], None]:
    def retries(play: Play) -> None:
        play.send(0.0)
        play.end(1.0)
        play.puppet.delay_s = delay_s
        play.retry(1.0)

    return retries


def waits_for_nothing(play: Play) -> None:
    play.referee.wait_s(REQUEST, [], 0.0, 0.5)


def hedges_in_the_past(play: Play) -> None:
    play.puppet.delay_s = -1.0
    play.referee.hedge_after_s(REQUEST, [0], 0.0)


def has_no_patience(play: Play) -> None:
    play.puppet.patient_s = 0.0
    play.referee.patience_s(REQUEST, [], 0.0)


def probes_nowhere(play: Play) -> None:
    play.puppet.probes = [2]
    play.tick(0.0)


def probes_twice(play: Play) -> None:
    play.puppet.probes = [0, 0]
    play.tick(0.0)


def an_unsent_probe(play: Play) -> None:
    play.puppet.probes = [0]
    play.tick(0.0)
    play.referee.probed(ended(1), 1.0)


def a_patient_probe(play: Play) -> None:
    play.puppet.probes = [0]
    play.tick(0.0)
    play.referee.probed(ended(0, latency_s=2.1), 2.1)


def warns_of_nobody(play: Play) -> None:
    play.puppet.warning = [-1]
    play.referee.warned()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (after_the_deadline, "after its deadline"),
        (hedged_after_the_deadline, "after its deadline"),
        (nowhere, "endpoint 2, which does not exist"),
        (time_goes_back, "time goes from 2 s to 1 s"),
        (time_is_none, "to nan s"),
        (too_often, "sent more than 3 times"),
        (again_after_the_first_token, "sent again after its first token"),
        (retried_after_the_first_token, "retried after its first token"),
        (while_being_served, "routed while it is being served"),
        (retried_while_being_served, "retried while it is being served"),
        (another_history, r"was sent to \[0\], not to \[1\]"),
        (hedged_twice, "hedged a second time"),
        (hedged_after_its_answer, "sent again after its first token"),
        (hedged_without_an_attempt, "hedged with 0 attempts under way"),
        (hedged_where_it_waits, "hedged where it already waits"),
        (hedged_though_it_does_harm, "running it twice does harm"),
        (two_answers, "a second first token, from a1"),
        (a_loser_that_goes_on, "a1 goes on beside a0"),
        (called_off_for_nobody, "called off, and nobody answers"),
        (an_answer_without_a_token, "that nobody saw"),
        (a_token_forgotten, "without the one that came"),
        (a_token_after_the_end, "has a token without being under way"),
        (ends_twice, "ends without being under way"),
        (takes_for_ever, "took inf s"),
        (unchosen, "was not chosen"),
        (refused_but_sent, "was not chosen"),
        (the_same_id, "starts twice"),
        (waits_for(math.nan), "is to wait nan s"),
        (waits_for(-0.1), "is to wait -0.1 s"),
        (waits_for(math.inf), "is to wait inf s"),
        (waits_for_nothing, "is to wait for nothing"),
        (hedges_in_the_past, "is to wait -1.0 s"),
        (has_no_patience, "may wait 0.0 s"),
        (probes_nowhere, r"endpoints \[2\] are probed"),
        (probes_twice, "probed twice"),
        (an_unsent_probe, "that was not sent"),
        (a_patient_probe, "a probe took 2.1 s"),
        (warns_of_nobody, r"endpoints \[-1\] are warned of"),
    ],
)
def test_a_broken_rule_stops_the_run(broken: Callable[[Play], None], message: str) -> None:
    with pytest.raises(ArenaInvariantError, match=message):
        broken(Play())


def spend(play: Play, number: int, now: float) -> None:
    """Play a request that fails once and asks for a retry."""
    play.tried, play.made = [], []
    about = request(number, now)
    play.send(now, attempt_id=f"{number}", about=about)
    play.end(now, attempt_id=f"{number}")
    play.retry(now, about)


def test_retries_beyond_the_declared_budget_stop_the_run() -> None:
    """F-02: 20 % of the requests of ten seconds, and two."""
    play = Play()
    spend(play, 0, 5.0)
    spend(play, 1, 5.0)
    with pytest.raises(ArenaInvariantError, match="3 retries for 3 requests"):
        spend(play, 2, 5.0)


def test_a_budget_fills_with_requests_and_with_time_and_reroutes_cost_nothing() -> None:
    play = Play()
    for number in range(2):
        spend(play, number, 5.0)
    play.puppet.rerouting = True
    for number in range(2, 30):
        spend(play, number, 5.0)
    play.puppet.rerouting = False
    for number in range(30, 36):
        spend(play, number, 5.0)
    spend(play, 36, 15.0)
    spend(play, 37, 15.0)
    with pytest.raises(ArenaInvariantError, match="3 retries for 3 requests in 10 s until 15 s"):
        spend(play, 38, 15.0)
