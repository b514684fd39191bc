"""The retraining job: history → candidates → gate → register → shadow → promote, or the reason why not.

The rule of this file: the champion stays unless a candidate beat it, the tuned breaker and the plain level rule on
later data that none of them was fitted on, and then again as a shadow on live traffic. A role is given in one step,
after everything else, so a run that is interrupted anywhere leaves a whole model serving. One run at a time holds the
lock.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import duckdb

from analytics.records import ModelEventRecord
from analytics.segments import SegmentWriter
from analytics.store import connect
from analytics.training import ProbeContrast, TrainingRows, probe_contrasts, training_rows, watched_rows
from scoring import candidates
from scoring.alarms import endpoint_days, false_alarms
from scoring.artifact import ArtifactError, Manifest, Model, checksum, code_version, libraries
from scoring.backfill import backfilled
from scoring.candidates import Candidate
from scoring.drift import proportion_z
from scoring.features import FEATURE_SET, NAMES
from scoring.gate import Contender, GateReport, breaker, judge, tuned_breaker
from scoring.history_rows import Part, split, watched_part
from scoring.labels import HORIZON_S
from scoring.level import Level
from scoring.metrics import skill
from scoring.packing import pack
from scoring.registry import Registry

SHARES = (0.5, 0.25, 0.25)
_MIN_ROWS = 1_000
_MIN_INCIDENTS = 3
_MIN_PROBES, _MAX_PROBE_Z = 20, 4.0

Progress = Callable[[str], None]


class BusyError(Exception):
    """Another run of the job holds the lock."""


class Verdict(StrEnum):
    """How a run of the job ended."""

    PROMOTED = "promoted"
    SHADOWED = "shadowed"
    WATCHING = "watching"
    KEPT = "kept"
    NOT_ENOUGH = "not_enough_evidence"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run goes by. `block_s`: unit of the bootstrap, and `min_blocks` of them are needed; `shadow_s`: how long a
    candidate is watched on live traffic before it may serve (0: not at all), and at most for `max_shadow_s`.
    """

    horizon_s: float = HORIZON_S
    max_false_alarms_per_day: float = 3.0
    block_s: float = 86_400.0
    min_blocks: int = 5
    shadow_s: float = 86_400.0
    max_shadow_s: float = 14 * 86_400.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RetrainReport:
    """What the job did and why.

    `rows` and `incidents` are the usable ones of each part: fitted on, calibrated on, judged on; `spans` are its first
    and last moment (unix seconds; 0 and 0 for an empty one). `gate` is None when it
    did not come to that. `champion` is what serves from now on, `candidate` what was registered ("" if nothing).
    `shadow_note` tells how a shadow that was watched before fared; `probes` lists endpoints whose probes say something
    else than their traffic.
    """

    verdict: Verdict
    reason: str
    rows: tuple[int, ...]
    incidents: tuple[int, ...]
    champion: str
    candidate: str
    gate: GateReport | None
    shadow_note: str
    probes: tuple[ProbeContrast, ...]
    spans: tuple[tuple[float, float], ...]
    judged: "Judged | None" = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What the written report draws: the part that was judged on, and everybody who was judged."""

    part: Part
    candidate: Candidate
    contenders: tuple[Contender, ...]


def retrain(
    data_dir: Path, *, since: float, until: float, settings: Settings = Settings(), progress: Progress = lambda _: None
) -> RetrainReport:
    """Train on the history of [since, until) (unix seconds) under `data_dir`; `until` is also the time of the run.

    `progress` hears the name of each step as it begins. Raises BusyError, HistoryError when the history cannot be read,
    ArtifactError when not even the shipped prior can be loaded, and OSError when the disk refuses. The serving model is
    then as it was.
    """
    with _alone(data_dir):
        return _Run(data_dir, since, until, settings, progress).run()


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    directory = data_dir / "models"
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory / ".retrain", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BusyError(f"{directory}: another run of the job is under way") from error
    try:
        yield
    finally:
        os.close(handle)


class _Run:
    def __init__(self, data_dir: Path, since: float, until: float, settings: Settings, progress: Progress) -> None:
        self._data_dir, self._since, self._until = data_dir, since, until
        self._settings, self._progress = settings, progress
        self._registry = Registry(data_dir)
        self._promoted = ""

    def run(self) -> RetrainReport:
        loaded = self._registry.champion()
        prior = self._registry.prior()
        champion = loaded.model or prior
        self._progress("read the history")
        connection = connect(self._data_dir / "history")
        try:
            rows = self._rows(connection)
            probes = self._odd_probes(connection)
            watched, shadow_note = self._judge_shadow(connection, champion)
        finally:
            connection.close()
        if watched is not None:
            champion = watched
        parts = split(rows, SHARES, self._settings.horizon_s)
        return self._train(parts, champion, prior, shadow_note, probes)

    def _rows(self, connection: duckdb.DuckDBPyConnection) -> TrainingRows:
        """Return the vectors that were logged; where another feature set was, today's, computed anew from attempts."""
        period = (self._settings.horizon_s, self._since, self._until)
        rows = training_rows(connection, *period, FEATURE_SET)
        if len(rows.time):
            return rows
        older = training_rows(connection, *period)
        if not len(older.time):
            return rows
        self._progress("fill in the features")
        return backfilled(connection, older)

    # The shadow of an earlier run.

    def _judge_shadow(self, connection: duckdb.DuckDBPyConnection, champion: Model) -> tuple[Model | None, str]:
        """Compare what champion and shadow said about live traffic; return the model that serves now if that changed,
        and what came of it in words.
        """
        roles = self._registry.roles()
        if roles.shadow is None or roles.since is None:
            return None, ""
        settings, shadow = self._settings, roles.shadow
        self._progress("judge the shadow")
        try:
            candidate = self._registry.load(shadow)
        except ArtifactError as error:
            # One of an earlier version of the features, say: nobody watches it, and nothing would ever come of it.
            note = f"{shadow} cannot be watched: {error}"
            self._give_up(shadow, champion, note)
            return None, note
        part = watched_part(
            rows := watched_rows(connection, settings.horizon_s, roles.since, self._until, shadow), settings.horizon_s
        )
        watched_s = float(part.time[-1] - part.time[0]) if len(part.time) else 0.0
        given_up = self._until - roles.since > settings.max_shadow_s
        if watched_s < settings.shadow_s or part.incidents < _MIN_INCIDENTS:
            note = f"{shadow}: {watched_s / 3600:.1f} h and {part.incidents} incidents watched so far"
            if given_up:
                self._give_up(shadow, champion, note)
            return None, note
        verdict = judge(
            part,
            Contender(shadow, rows.shadow_risk, candidate.manifest.threshold),
            Contender(champion.manifest.version, rows.risk, champion.manifest.threshold),
            (),
            block_s=min(settings.block_s, max(part.tick_s, watched_s / settings.min_blocks)),
            tick_s=part.tick_s,
        )
        note = f"{shadow} as a shadow: {verdict.reason}"
        if not verdict.passed:
            self._give_up(shadow, champion, note)
            return None, note
        self._progress("promote the shadow")
        self._registry.promote(shadow)
        self._promoted = shadow
        self._note("promoted", shadow, champion.manifest.version, verdict, note)
        return candidate, note

    def _give_up(self, shadow: str, champion: Model, note: str) -> None:
        self._registry.watch(None, self._until)
        self._note("retired", shadow, champion.manifest.version, None, note)

    # A new candidate.

    def _train(
        self, parts: list[Part], champion: Model, prior: Model, shadow_note: str, probes: tuple[ProbeContrast, ...]
    ) -> RetrainReport:
        rows, incidents = tuple(int(part.usable.sum()) for part in parts), tuple(part.incidents for part in parts)
        spans = tuple((float(part.time[0]), float(part.time[-1])) if len(part.time) else (0.0, 0.0) for part in parts)
        serving = champion.manifest.version

        def report(
            verdict: Verdict, reason: str, candidate: str = "", gate: GateReport | None = None,
            judged: Judged | None = None,
        ) -> RetrainReport:  # fmt: skip
            now = candidate if verdict is Verdict.PROMOTED else serving
            if self._promoted and verdict in (Verdict.KEPT, Verdict.NOT_ENOUGH):
                verdict, reason = Verdict.PROMOTED, f"{shadow_note}; no other: {reason}"
            return RetrainReport(
                verdict, reason, rows, incidents, now, candidate, gate, shadow_note, probes, spans, judged
            )  # fmt: skip

        lacking = _lacking(rows, incidents, parts, self._settings)
        if lacking:
            return report(Verdict.NOT_ENOUGH, lacking)
        try:
            candidate, judged, gate = self._contest(parts, champion, prior)
        except ValueError as error:
            return report(Verdict.KEPT, f"no candidate: {error}")
        manifest = self._register(candidate, parts[2], champion, sum(incidents))
        self._note("registered" if gate.passed else "kept", manifest.version, serving, gate, gate.reason)
        if not gate.passed:
            return report(Verdict.KEPT, gate.reason, manifest.version, gate, judged)
        if self._settings.shadow_s <= 0:
            self._progress("promote")
            self._registry.promote(manifest.version)
            self._note("promoted", manifest.version, serving, gate, gate.reason)
            return report(Verdict.PROMOTED, gate.reason, manifest.version, gate, judged)
        if self._registry.roles().shadow is not None:
            return report(Verdict.WATCHING, f"{shadow_note}; the new one waits", manifest.version, gate, judged)
        self._progress("watch")
        self._registry.watch(manifest.version, self._until)
        self._note("shadowed", manifest.version, serving, gate, gate.reason)
        return report(Verdict.SHADOWED, gate.reason, manifest.version, gate, judged)

    def _contest(self, parts: list[Part], champion: Model, prior: Model) -> tuple[Candidate, Judged, GateReport]:
        """Fit everybody, take the better model by log loss, and let the gate speak; the level rule takes the model's
        place where it wins. Raises ValueError when nobody can be fitted.
        """
        fit, calibrate, compare = parts
        settings = self._settings
        most = settings.max_false_alarms_per_day
        self._progress("fit the trees")
        found = [
            candidates.candidate_of(
                "trees", candidates.trees(fit, calibrate, settings.seed), fit, calibrate, prior, most
            )
        ]
        self._progress("fit the logistic regression")
        with suppress(ValueError):
            linear = candidates.logistic(fit, settings.seed)
            found.append(candidates.candidate_of("logistic", linear, fit, calibrate, prior, most))
        self._progress("tune the rules")
        level = candidates.candidate_of("level", Level(), fit, calibrate, prior, most)
        rate, ratio = tuned_breaker(calibrate, most)
        self._progress("judge")
        best = min(found, key=lambda candidate: candidate.log_loss)
        rules = (level.contender(compare), Contender("breaker", breaker(compare.x, rate, ratio), 0.5))
        serving = Candidate("champion", champion.forecaster, champion.manifest.threshold, 0.0, 0.0).contender(compare)
        serving = Contender(champion.manifest.version, serving.risk, serving.threshold)

        def through_the_gate(candidate: Candidate, rivals: tuple[Contender, ...]) -> GateReport:
            return judge(
                compare, candidate.contender(compare), serving, rivals, block_s=settings.block_s, tick_s=compare.tick_s
            )

        gate = through_the_gate(best, rules)
        others = tuple(c.contender(compare) for c in found)
        against_level = next(c for c in gate.comparisons if c.rival == "level")
        if not gate.passed and against_level.difference < 0:
            best, gate = level, through_the_gate(level, rules[1:])
        return best, Judged(compare, best, (*others, *rules, serving)), gate

    def _register(self, candidate: Candidate, compare: Part, champion: Model, incidents: int) -> Manifest:
        self._progress("register")
        arrays, settings = pack(candidate.forecaster), self._settings
        digest = checksum(arrays)
        own = candidate.contender(compare)
        series = compare.series(own.risk)
        days = endpoint_days(series)
        manifest = Manifest(
            version=f"h{int(self._until)}-{digest[:8]}",
            kind=candidate.kind,
            code=code_version(),
            trained_at=self._until,
            seed=settings.seed,
            feature_set=FEATURE_SET,
            features=NAMES,
            horizon_s=settings.horizon_s,
            threshold=candidate.threshold,
            libraries=libraries(),
            data=(
                f"history with {incidents} incidents; what it taught weighs {candidate.weight:.2f}, the prior the "
                "rest; figures are of the last quarter"
            ),
            data_from=self._since,
            data_until=self._until,
            skill=skill(compare.y[compare.usable], own.risk[compare.usable]),
            false_alarms_per_day=sum(false_alarms(s, candidate.threshold) for s in series) / days if days else None,
            endpoint_days=days,
            incidents={},
            parent=champion.manifest.version,
            arrays_sha256=digest,
        )
        self._registry.register(arrays, manifest)
        return manifest

    # What else history tells, and what is written into it.

    def _odd_probes(self, connection: duckdb.DuckDBPyConnection) -> tuple[ProbeContrast, ...]:
        """Return the endpoints whose probes fail otherwise than their traffic; each is an event."""
        odd = []
        for found in probe_contrasts(connection, self._since, self._until):
            z = proportion_z(found.probes_failed, found.probes, found.live_failed, found.live)
            if found.probes >= _MIN_PROBES and abs(z) > _MAX_PROBE_Z:
                odd.append(found)
                words = (
                    f"{found.endpoint}: {found.probes_failed} of {found.probes} probes failed, "
                    f"{found.live_failed} of {found.live} live attempts within seconds of them"
                )
                self._event("drift", "", "", "probe_versus_live_z", z, _MAX_PROBE_Z, words)
        return tuple(odd)

    def _note(self, event: str, version: str, other: str, gate: GateReport | None, note: str) -> None:
        value = gate.comparisons[0].difference if gate and gate.comparisons else None
        self._event(event, version, other, "warning_s_per_day" if gate else "", value, 0.0 if gate else None, note)

    def _event(
        self, event: str, version: str, other: str, metric: str, value: float | None, threshold: float | None, note: str
    ) -> None:
        writer = SegmentWriter(self._data_dir / "history", "retrain", time.time_ns())
        try:
            writer.write(
                ModelEventRecord.stream,
                [
                    ModelEventRecord(
                        replica="retrain", time=self._until, event=event, version=version, other=other, metric=metric,
                        value=value, threshold=threshold, actor="retrain", note=note,
                    )
                ],
            )  # fmt: skip
        finally:
            writer.close()


def _lacking(rows: tuple[int, ...], incidents: tuple[int, ...], parts: list[Part], settings: Settings) -> str:
    """Return what the history lacks for a fair contest, or nothing."""
    compare = parts[2]
    span_s = float(compare.time[-1] - compare.time[0]) if len(compare.time) else 0.0
    blocks = int(span_s / settings.block_s + 0.5)
    if sum(rows) < _MIN_ROWS or incidents[0] < _MIN_INCIDENTS or min(incidents) < 1:
        return (
            f"{sum(rows)} rows and {sum(incidents)} incidents ({', '.join(map(str, incidents))} by part); needed: "
            f"{_MIN_ROWS} rows, {_MIN_INCIDENTS} incidents to fit on, 1 to calibrate on, 1 to judge on"
        )
    if blocks < settings.min_blocks:
        history_h = settings.min_blocks * settings.block_s / SHARES[2] / 3600
        return (
            f"the part to judge on spans {span_s / 3600:.1f} h; needed: {settings.min_blocks} blocks of "
            f"{settings.block_s / 3600:g} h, so a history of about {history_h:g} h"
        )
    return ""
