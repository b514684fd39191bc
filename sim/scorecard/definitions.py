"""The definitions of the scorecard's metrics: one function each.

The rule of this file: an incident is what the world's truth says (`sim.arena.truth.Trouble`), never what a policy saw;
`None` means that a run holds no evidence for a metric, and is never counted as 0. Endpoint 0 is the preferred one. How
a share is measured stands in `sim.scorecard.shares`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sim.arena.log import Log
from sim.arena.truth import SLOW, Trouble
from sim.scorecard.shares import Shares, shares_of

DAY_S = 86_400.0
GONE = 0.1
HALF = 0.5
HOME = 0.75
BACK = 0.9
EARLY_S = 300.0
PREFERRED = 0

Metrics = dict[str, float | None]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """One run's log with the truth of its world. `normal_ttft_s`: the preferred endpoint's healthy median."""

    log: Log
    troubles: Sequence[Trouble]
    normal_ttft_s: float
    shares: Shares = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", shares_of(self.log))

    @property
    def bad(self) -> npt.NDArray[np.bool_]:
        """Per request: it finally failed, or its TTFT over all attempts exceeded 3 × the model's normal."""
        slow: npt.NDArray[np.bool_] = np.nan_to_num(self.log.ttft_s, nan=0.0) > SLOW * self.normal_ttft_s
        return self.log.failed | slow

    def met(self) -> list[Trouble]:
        """Return the incidents a policy could react to: their endpoint had more than 10 % of the traffic at some time
        in the 300 s before, and requests came while they lasted.
        """
        return [
            trouble
            for trouble in self.troubles
            if (self.shares.highest(trouble.endpoint, trouble.onset_s - EARLY_S, trouble.onset_s) or 0.0) > GONE
            and self._traffic(trouble.onset_s, trouble.end_s)
        ]

    def _traffic(self, begin_s: float, end_s: float) -> bool:
        moments = self.shares.between(begin_s, end_s)
        return bool(moments.stop > moments.start)


def requests(run: Evidence) -> float | None:
    """Return the number of requests."""
    return float(len(run.log.arrival_s))


def bad_per_1k(run: Evidence) -> float | None:
    """Return bad requests per thousand: finally failed, or TTFT over all attempts above 3 × the normal."""
    return _per_1k(run.bad)


def failed_per_1k(run: Evidence) -> float | None:
    """Return requests per thousand whose caller got no whole answer."""
    return _per_1k(run.log.failed)


def ttft_p95_ms(run: Evidence) -> float | None:
    """Return the 95th percentile of TTFT over all attempts, of the requests that got a first token."""
    return _ttft_ms(run, 95)


def ttft_p99_ms(run: Evidence) -> float | None:
    """Return the 99th percentile of TTFT over all attempts, of the requests that got a first token."""
    return _ttft_ms(run, 99)


def detect_s(run: Evidence) -> float | None:
    """Return the mean time from onset until the endpoint's share is at most 10 %: 0 if it was already, and the whole
    incident if it never was (see `missed`).
    """
    met = run.met()
    times = [_detected_s(run, trouble) for trouble in met]
    return _mean([t.end_s - t.onset_s if s is None else s for s, t in zip(times, met, strict=True)])


def missed(run: Evidence) -> float | None:
    """Return the share of incidents whose endpoint kept more than 10 % until their end."""
    return _mean([float(_detected_s(run, trouble) is None) for trouble in run.met()])


def early_recall(run: Evidence) -> float | None:
    """Return the share of incidents that were met early: at onset the endpoint's share was already at most 50 %, or the
    policy warned of it within the 300 s before.

    An endpoint that never had more than half cannot give it up: for balanced policies only warnings count, and without
    any there is no evidence.
    """
    return _mean([float(lead is not None) for lead in _leads(run)])


def lead_s(run: Evidence) -> float | None:
    """Return how long before onset the incidents met early were, on average; each at most 300 s."""
    return _mean([lead for lead in _leads(run) if lead is not None])


def false_failovers_per_day(run: Evidence) -> float | None:
    """Return diversions from the preferred endpoint begun with no incident of it from 60 s before to 300 s after.

    A diversion begins when its share falls to 50 % or less after having been 75 % or more.
    """
    share = run.shares.share[PREFERRED]
    if not len(share):
        return None
    level = np.where(share >= HOME, 1, np.where(share <= HALF, -1, 0))
    marks = np.flatnonzero(level)
    begun = marks[1:][(level[marks[1:]] == -1) & (level[marks[:-1]] == 1)]
    wrong = sum(
        not any(t.onset_s <= moment + EARLY_S and t.end_s >= moment - 60 for t in _preferred(run))
        for moment in run.shares.time_s[begun].tolist()
    )
    return wrong / run.log.duration_s * DAY_S


def needless_diversion(run: Evidence) -> float | None:
    """Return the share of all requests sent away from the preferred endpoint while it was healthy, with no onset within
    the next 120 s and no end within the last 60 s.
    """
    arrival_s = run.log.arrival_s
    if not len(arrival_s):
        return None
    excused = np.zeros(len(arrival_s), dtype=np.bool_)
    for trouble in _preferred(run):
        excused |= (arrival_s >= trouble.onset_s - 120) & (arrival_s <= trouble.end_s + 60)
    return float(np.mean((run.log.first != PREFERRED) & ~excused))


def switches_per_day(run: Evidence) -> float | None:
    """Return how often the endpoint with the largest share changes; a tie changes nothing."""
    share = run.shares.share
    if not share.shape[1]:
        return None
    alone = np.count_nonzero(share == share.max(axis=0), axis=0) == 1
    leader = np.argmax(share, axis=0)[alone]
    return float(np.count_nonzero(np.diff(leader))) / run.log.duration_s * DAY_S


def probe_share(run: Evidence) -> float | None:
    """Return the share of all calls to providers that were probes."""
    probes, attempts = len(run.log.probe_s), int(run.log.attempts.sum())
    return probes / (probes + attempts) if probes + attempts else None


def hedge_share(run: Evidence) -> float | None:
    """Return the share of requests for which a second attempt was started beside one that waited."""
    return float(np.mean(run.log.hedged)) if len(run.log.hedged) else None


def cost_usd_per_1k(run: Evidence) -> float | None:
    """Return dollars per thousand requests, over all attempts and probes."""
    n = len(run.log.arrival_s)
    return float(run.log.cost_usd.sum() + run.log.probe_cost_usd.sum()) / n * 1000 if n else None


def recovery_delay_s(run: Evidence) -> float | None:
    """Return the mean time from an incident's end until the preferred endpoint's share is again 90 % or more.

    Counted for incidents before which it had been and at whose end it was not. One that the next incident overtakes is
    no evidence; one that the run's end overtakes counts the time until then.
    """
    delays: list[float] = []
    troubles = sorted(_preferred(run), key=lambda trouble: trouble.onset_s)
    for place, trouble in enumerate(troubles):
        next_onset_s = troubles[place + 1].onset_s if place + 1 < len(troubles) else np.inf
        before = run.shares.highest(PREFERRED, 0.0, trouble.onset_s)
        ending = run.shares.at(PREFERRED, trouble.end_s)
        if before is None or ending is None or before < BACK or ending >= BACK:
            continue
        after = run.shares.between(trouble.end_s, next_onset_s)
        back = np.flatnonzero(run.shares.share[PREFERRED, after] >= BACK)
        if len(back):
            delays.append(float(run.shares.time_s[after][back[0]]) - trouble.end_s)
        elif next_onset_s == np.inf and run.log.duration_s > trouble.end_s:
            delays.append(run.log.duration_s - trouble.end_s)
    return _mean(delays)


def avoidable_removed(policy: float | None, static: float | None, oracle: float | None) -> float | None:
    """Return the share of avoidable badness that a policy removed: (static − policy) / (static − oracle).

    All three are `bad_per_1k` of the same worlds. 1 is the oracle, 0 the static primary, and less than 0 harm. None if
    there was nothing to avoid.
    """
    if policy is None or static is None or oracle is None or static <= oracle:
        return None
    return (static - policy) / (static - oracle)


METRICS: Mapping[str, Callable[[Evidence], float | None]] = {
    metric.__name__: metric
    for metric in (
        bad_per_1k, failed_per_1k, ttft_p95_ms, ttft_p99_ms, detect_s, missed, early_recall, lead_s,
        false_failovers_per_day, needless_diversion, switches_per_day, probe_share, hedge_share, cost_usd_per_1k,
        recovery_delay_s, requests,
    )
}  # fmt: skip


def measure(run: Evidence) -> Metrics:
    """Return every metric of a run.

    Raises:
        ValueError: a metric is not finite, or a share is outside [0, 1].
    """
    found = {name: metric(run) for name, metric in METRICS.items()}
    for name, value in found.items():
        if value is not None and not np.isfinite(value):
            raise ValueError(f"{name}: expected a finite number or none, got {value}")
    for name in ("missed", "early_recall", "needless_diversion", "probe_share", "hedge_share"):
        value = found[name]
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a share in [0, 1], got {value}")
    return found


def _preferred(run: Evidence) -> list[Trouble]:
    return [trouble for trouble in run.troubles if trouble.endpoint == PREFERRED]


def _detected_s(run: Evidence, trouble: Trouble) -> float | None:
    at_onset = run.shares.at(trouble.endpoint, trouble.onset_s)
    if at_onset is not None and at_onset <= GONE:
        return 0.0
    during = run.shares.between(trouble.onset_s, trouble.end_s)
    gone = np.flatnonzero(run.shares.share[trouble.endpoint, during] <= GONE)
    return float(run.shares.time_s[during][gone[0]]) - trouble.onset_s if len(gone) else None


def _leads(run: Evidence) -> list[float | None]:
    """Per incident that can be judged, by how much it was met early; None: it was not."""
    found: list[float | None] = []
    for trouble in run.met():
        had_half = (run.shares.highest(trouble.endpoint, 0.0, trouble.onset_s) or 0.0) > HALF
        if had_half or len(run.log.warned_s):
            left = _left_s(run, trouble) if had_half else None
            found.append(max((lead for lead in (left, _warned_s(run.log, trouble)) if lead is not None), default=None))
    return found


def _left_s(run: Evidence, trouble: Trouble) -> float | None:
    """Return how long the share has been at most 50 % at onset, at most 300 s; None if it is not."""
    before = run.shares.between(0.0, trouble.onset_s)
    led = np.flatnonzero(run.shares.share[trouble.endpoint, before] > HALF)
    if not len(led) or led[-1] + 1 == before.stop - before.start:
        return None
    return min(EARLY_S, trouble.onset_s - float(run.shares.time_s[before][led[-1] + 1]))


def _warned_s(log: Log, trouble: Trouble) -> float | None:
    """Return how long before onset the policy first warned, within 300 s; None if it did not."""
    own = (log.warned_endpoint == trouble.endpoint) & (log.warned_s <= trouble.onset_s)
    on, off = log.warned_s[own & log.warned_on].tolist(), [*log.warned_s[own & ~log.warned_on].tolist(), np.inf]
    begin_s = trouble.onset_s - EARLY_S
    for began, ended in zip(on, off, strict=False):
        if ended > begin_s:
            return float(trouble.onset_s - max(began, begin_s))
    return None


def _ttft_ms(run: Evidence, percent: float) -> float | None:
    got = run.log.ttft_s[~np.isnan(run.log.ttft_s)]
    return float(np.percentile(got, percent)) * 1000 if len(got) else None


def _per_1k(struck: npt.NDArray[np.bool_]) -> float | None:
    return float(np.mean(struck)) * 1000 if len(struck) else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
