"""Thresholds that change while the service runs: whatever is applied in `<data_dir>/thresholds` is in force a moment
later, without a restart.

The rule of this file: it can only make things better (F-20). A record that is damaged or says what no policy may say is
told in the log, and the thresholds in force stay.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict

from analytics.records import ThresholdRecord
from routing.errors import PolicyError
from routing.policy import Policy
from scoring.threshold_store import InForce, ThresholdStore, ThresholdStoreError
from service.clock import Clock

log = logging.getLogger(__name__)


class ThresholdKeeper:
    """Keeps one replica at the thresholds in force. `adopt` takes over a policy at a time of `clock`; `record` hears of
    each change when this replica begins to work by it.
    """

    def __init__(
        self,
        store: ThresholdStore,
        configured: Policy,
        adopt: Callable[[Policy, float], None],
        record: Callable[[ThresholdRecord], None],
        clock: Clock,
        replica: str,
    ) -> None:
        self._store = store
        self._configured = configured
        self._adopt = adopt
        self._record = record
        self._clock = clock
        self._replica = replica
        self._stamp = 0
        self._change = ""

    def look(self) -> None:
        """Adopt what is in force, if the record of changes is another than at the last look. Never raises."""
        stamp = self._store.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            found = self._store.in_force(self._configured)
        except (ThresholdStoreError, PolicyError, OSError) as error:
            log.warning("the thresholds in force stay as they were: %s", error)
            return
        change = found.change.id if found.change else ""
        if change == self._change:
            return
        if found.ignored:
            log.warning("%s: the configuration was edited since, and counts for %s", change, ", ".join(found.ignored))
        now = self._clock.now()
        self._adopt(found.policy, now)
        self._record(self._row(found, now))
        log.info("thresholds in force: %s", change or "those of the configuration")
        self._change = change

    def _row(self, found: InForce, now: float) -> ThresholdRecord:
        change = found.change
        told = asdict(change) if change else {}
        return ThresholdRecord(
            replica=self._replica,
            time=now,
            change=change.id if change else "",
            before=self._change,
            made_by=change.by if change else "",
            applied_by=change.applied_by if change else "",
            moved=json.dumps(told.get("changed", {})),
            figures=json.dumps({name: told.get(name, {}) for name in ("before", "after")}),
            evidence=json.dumps(told.get("evidence", {})),
            ignored=json.dumps(found.ignored),
            note=change.note if change else "",
        )
