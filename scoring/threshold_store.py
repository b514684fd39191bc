"""Changes of thresholds, below `<data>/thresholds/changes.json`: what was proposed, what is in force, what was before.

The rule of this file: one small file, always replaced whole under a lock, with a generation that grows; whoever reads
it at any moment finds one consistent state. A change that was made is never edited away: it is taken back by another
step that is recorded too. A value holds only while the configuration is as it was when the change was made: whoever
edits the configuration means it.
"""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from analytics.files import AtomicFile
from routing.policy import Policy
from scoring.thresholds import Value, changed, value_of

_KEPT = 500


class ThresholdStoreError(Exception):
    """The changes cannot be read, or what was asked for is not possible; says which and why."""


class Status(StrEnum):
    """Where a change stands. PROPOSED waits for somebody; RETIRED was in force until the next one; ROLLED_BACK was
    taken back.
    """

    PROPOSED = "proposed"
    IN_FORCE = "in_force"
    RETIRED = "retired"
    ROLLED_BACK = "rolled_back"


Stored = float | int | list[float] | None
"""A threshold as JSON has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change.

    `values` are all thresholds that differ from the configuration once it is in force, `configured` what the
    configuration said for the same names when it was made. `changed` is what this change itself moves, as (before,
    after). `before`, `after` are the figures of both policies on the same worlds, `evidence` what they rest on.
    `parent` is the change that was in force, "" for the configuration alone. Times are unix seconds.
    """

    id: str
    made: float
    by: str
    parent: str
    values: dict[str, Stored]
    configured: dict[str, Stored]
    changed: dict[str, tuple[Stored, Stored]]
    before: dict[str, float | None]
    after: dict[str, float | None]
    evidence: dict[str, Any]
    note: str
    status: Status = Status.PROPOSED
    applied: float | None = None
    applied_by: str = ""
    automatic: bool = False
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class _State:
    generation: int = 0
    in_force: str = ""
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class InForce:
    """A policy with the applied change put in. `ignored` names thresholds whose configuration was edited since, so that
    the configuration counts.
    """

    policy: Policy
    change: Change | None
    ignored: tuple[str, ...]


class ThresholdStore:
    """The changes of one data directory. Nothing is created before something is proposed.

    Every method raises ThresholdStoreError when the file is damaged, and OSError when the disk refuses.
    """

    def __init__(self, data_dir: Path) -> None:
        self._directory = data_dir / "thresholds"
        self._file = self._directory / "changes.json"

    def stamp(self) -> int:
        """Return a number that differs whenever the file was replaced; 0 without one. One `stat`, never raises."""
        try:
            status = self._file.stat()
        except OSError:
            return 0
        return hash((status.st_mtime_ns, status.st_ino, status.st_size)) or 1

    def changes(self) -> list[Change]:
        """Return all changes, oldest first."""
        return list(self._read().changes)

    def in_force(self, configured: Policy) -> InForce:
        """Return the policy to work by: the configured one with the applied change. Raises PolicyError for values that
        this code refuses.
        """
        change = self._current(self._read())
        if change is None:
            return InForce(configured, None, ())
        values = {name: loaded(value) for name, value in change.values.items()}
        ignored = tuple(name for name in values if value_of(configured, name) != loaded(change.configured.get(name)))
        policy = changed(configured, {name: value for name, value in values.items() if name not in ignored})
        return InForce(policy, change, ignored)

    def propose(
        self,
        configured: Policy,
        moved: Mapping[str, Value],
        *,
        made: float,
        by: str,
        before: Mapping[str, float | None],
        after: Mapping[str, float | None],
        evidence: Mapping[str, Any],
        note: str = "",
    ) -> Change:
        """Record a change of `moved` against what is in force; nothing takes effect yet.

        Raises PolicyError when the result is no sound policy.
        """
        with self._locked() as state:
            parent = self._current(state)
            now = self.in_force(configured)
            changed(now.policy, moved)
            kept = {} if parent is None else {n: v for n, v in parent.values.items() if n not in now.ignored}
            values = {**kept, **{name: _plain(value) for name, value in moved.items()}}
            change = Change(
                id=f"t{int(made)}-{len(state.changes) + 1}",
                made=made,
                by=by,
                parent=parent.id if parent else "",
                values=values,
                configured={name: _plain(value_of(configured, name)) for name in values},
                changed={name: (_plain(value_of(now.policy, name)), _plain(value)) for name, value in moved.items()},
                before=dict(before),
                after=dict(after),
                evidence=dict(evidence),
                note=note,
            )
            self._write(replace(state, changes=[*state.changes, change][-_KEPT:]))
        return change

    def apply(
        self, change_id: str, *, now: float, by: str, automatic: bool = False, most_per_day: int | None = None
    ) -> Change:
        """Put a proposed change in force.

        Raises ThresholdStoreError when there is no such proposal, when it was made against thresholds that are no
        longer in force, or when `most_per_day` automatic changes were made in the last 24 hours.
        """
        with self._locked() as state:
            change = next((one for one in state.changes if one.id == change_id), None)
            if change is None or change.status is not Status.PROPOSED:
                waiting = ", ".join(one.id for one in state.changes if one.status is Status.PROPOSED) or "none"
                raise ThresholdStoreError(f"{change_id!r} is no proposal; proposals: {waiting}")
            if change.parent != state.in_force:
                raise ThresholdStoreError(
                    f"{change_id} was made against {change.parent or 'the configuration'}, but "
                    f"{state.in_force or 'the configuration'} is in force: propose again"
                )
            recent = [one for one in state.changes if one.automatic and one.applied and one.applied > now - 86_400]
            if most_per_day is not None and len(recent) >= most_per_day:
                raise ThresholdStoreError(
                    f"{len(recent)} automatic changes in the last 24 hours, expected at most {most_per_day}"
                )
            applied = replace(change, status=Status.IN_FORCE, applied=now, applied_by=by, automatic=automatic)
            ended = [
                replace(one, status=Status.RETIRED, ended=now) if one.id == state.in_force else one
                for one in state.changes
            ]
            self._write(replace(state, in_force=change_id, changes=_put(ended, applied)))
        return applied

    def rollback(self, *, now: float) -> Change:
        """Take the change in force back, so that its parent is in force again; return it.

        Raises ThresholdStoreError when the configuration alone is in force.
        """
        with self._locked() as state:
            current = self._current(state)
            if current is None:
                raise ThresholdStoreError("no change is in force: nothing to roll back")
            changes = _put(state.changes, replace(current, status=Status.ROLLED_BACK, ended=now))
            parent = next((one for one in changes if one.id == current.parent), None)
            if parent is not None:
                changes = _put(changes, replace(parent, status=Status.IN_FORCE, ended=None))
            self._write(replace(state, in_force=parent.id if parent else "", changes=changes))
        return current

    @staticmethod
    def _current(state: _State) -> Change | None:
        return next((one for one in state.changes if one.id == state.in_force), None)

    def _read(self) -> _State:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_State)
        except FileNotFoundError:
            return _State()
        except msgspec.DecodeError as error:
            raise ThresholdStoreError(f"{self._file}: expected a record of changes: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[_State]:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._read()

    def _write(self, state: _State) -> None:
        text = msgspec.json.format(msgspec.json.encode(replace(state, generation=state.generation + 1)), indent=1)
        with AtomicFile(self._file) as temporary:
            temporary.write_bytes(text + b"\n")


def _put(changes: list[Change], change: Change) -> list[Change]:
    return [change if one.id == change.id else one for one in changes]


def _plain(value: Value | None) -> Stored:
    return list(value) if isinstance(value, tuple) else value


def loaded(value: Stored) -> Value | None:
    """Return a threshold as a policy has it."""
    return tuple(value) if isinstance(value, list) else value
