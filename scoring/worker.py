"""The scoring process: `python -m scoring.worker`, frames in on stdin, frames out on stdout, words on stderr.

The rule of this file: it may die at any moment without a request noticing, and it never outlives its parent: the end of
stdin is its end. It has no clock: the `time` of the batches drives the ticks, the serving process's clock rules.

Exit status: 0 after the end of stdin or SIGTERM, 2 for frames that are not the protocol.
"""

import argparse
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from analytics.compaction import Compactor
from analytics.errors import ForeignFileError
from analytics.records import SCORING_SUFFIX, ModelEventRecord, Record
from analytics.segments import SegmentWriter
from analytics.writer import HistoryWriter
from scoring.artifact import ArtifactError, Model
from scoring.monitor import Doubt
from scoring.protocol import (
    Batch,
    FrameBuffer,
    Hello,
    Note,
    Outbound,
    ProtocolError,
    Ready,
    decode_inbound,
    encode,
)  # fmt: skip
from scoring.registry import PRIOR, Registry
from scoring.scorer import Scorer

_log = logging.getLogger("scoring.worker")
_COMPACT_EVERY_S = 60.0
_CLOSE_S = 5.0
_READ_BYTES = 1 << 16


class Worker:
    """One conversation, from Hello to the end. `output` is the file descriptor frames go to."""

    def __init__(self, hello: Hello, prior: Path, output: int) -> None:
        self._output = output
        data_dir = Path(hello.data_dir)
        self._replica = hello.replica + SCORING_SUFFIX
        self._registry = Registry(data_dir, prior)
        self._history: HistoryWriter | None = None
        self._history_dir = data_dir / "history"
        self._lost = ""
        try:
            self._history = HistoryWriter(SegmentWriter(self._history_dir, self._replica, time.time_ns()))
        except OSError as error:
            self._send(Note("error", f"health is not recorded: {error}"))
        self._scorer = Scorer(hello, self._put, Random())
        self._stamp: int | None = None
        self._reload()
        self._stop = threading.Event()
        threading.Thread(target=self._compact, args=(hello.retention_s,), name="compactor", daemon=True).start()

    def take(self, batch: Batch) -> None:
        """Learn, and at a new tick answer with a forecast."""
        forecast = self._scorer.take(batch)
        if forecast is None:
            return
        self._send(forecast)
        self._tell_lost()
        for doubt in self._scorer.doubts():
            self._heed(doubt, batch.time)
        if self._registry.stamp() != self._stamp:
            self._reload()

    def close(self) -> None:
        """Make what was recorded durable."""
        self._stop.set()
        if self._history is not None:
            stats = self._history.close(_CLOSE_S)
            if stats.pending or stats.dropped:
                _log.error("%d rows lost: %s", stats.pending + stats.dropped, stats.last_error)

    def _put(self, record: Record) -> None:
        if self._history is not None:
            self._history.put(record)

    def _tell_lost(self) -> None:
        error = self._history.stats().last_error if self._history is not None else ""
        if error and error != self._lost:
            self._send(Note("error", f"health is not recorded: {error}"))
        self._lost = error

    def _heed(self, doubt: Doubt, now: float) -> None:
        """Record what speaks against the model; a grave doubt takes it out of service."""
        serving = self._scorer.model
        if serving is None:
            return
        version, other, event = serving.manifest.version, "", "drift"
        if doubt.grave:
            try:
                after = self._registry.roll_back(version)
            except (ArtifactError, OSError) as error:
                # The disk keeps the old roles; this process at least stops acting on what it doubts.
                self._send(Note("error", f"{version} could not be rolled back ({doubt.note}): {error}"))
                self._scorer.serve(None)
                return
            if after is None:
                return
            event = "floored" if after.floored else "rolled_back"
            other = "" if after.floored else (after.champion or self._registry.prior().manifest.version)
            place = f"{other} serves" if other else "the reflex stands alone"
            self._send(Note("warning", f"{version} was taken out of service, {place}: {doubt.note}"))
        else:
            self._send(Note("warning", f"{version}: {doubt.note} ({doubt.metric} {doubt.value:.3g})"))
        self._put(
            ModelEventRecord(
                replica=self._replica, time=now, event=event, version=version, other=other, metric=doubt.metric,
                value=doubt.value, threshold=doubt.limit, actor="monitor", note=doubt.note,
            )
        )  # fmt: skip

    def _reload(self) -> None:
        """Take over what the roles name. A broken new champion does not push out a model that works."""
        self._stamp = self._registry.stamp()
        champion = self._registry.champion()
        serving = self._scorer.model
        if champion.floored:
            self._scorer.serve(None)
            self._send(Note("warning", "forecasting was stopped: the reflex policy stands alone until one is promoted"))
        elif champion.model is None or (champion.problem and serving is not None):
            kept = (
                f"{serving.manifest.version} stays"
                if serving
                else "no forecast is made, the reflex policy stands alone"
            )
            self._send(Note("error" if serving is None else "warning", f"{kept}: {champion.problem}"))
        else:
            if champion.problem:
                self._send(
                    Note(
                        "warning",
                        f"serving {champion.model.manifest.version} instead of the champion: {champion.problem}",
                    )
                )
            self._scorer.serve(champion.model, self._shadow())
        model = self._scorer.model
        self._send(Ready(model.manifest.version, model.manifest.threshold) if model else Ready("", 1.0))

    def _shadow(self) -> Model | None:
        try:
            return self._registry.shadow()
        except ArtifactError as error:
            self._send(Note("warning", f"nobody is watched: {error}"))
            return None

    def _compact(self, retention_s: float | None) -> None:
        compactor, told = Compactor(self._history_dir, retention_s=retention_s), set[str]()
        while not self._stop.wait(_COMPACT_EVERY_S):
            compact(compactor, time.time(), told)

    def _send(self, message: Outbound) -> None:
        frame = memoryview(encode(message))
        while frame:
            frame = frame[os.write(self._output, frame) :]


def compact(compactor: Compactor, now: float, told: set[str]) -> None:
    """Compact the history once; it is done again anyway, so whatever happens is only said.

    `told` is what has been said: files that stay as they are would be news once a minute, for months.
    """
    try:
        report = compactor.run_once(now)
        said = [f"damaged history was set aside: {problem}" for problem in report.quarantined]
        said += [f"history is left as it is: {problem}" for problem in report.newer]
    except ForeignFileError as error:
        said = [f"history cannot be compacted: {error}"]
    except Exception:
        _log.exception("compaction failed; it is tried again in %g s", _COMPACT_EVERY_S)
        return
    for words in said:
        if words not in told:
            told.add(words)
            _log.warning("%s", words)


def run(source: int, output: int, prior: Path = PRIOR) -> None:
    """Converse over two file descriptors until the source ends or SIGTERM arrives. Raises ProtocolError."""
    worker: Worker | None = None
    try:
        for payload in _frames(source):
            message = decode_inbound(payload)
            match message:
                case Hello() if worker is None:
                    _yield_cpu(message)
                    worker = Worker(message, prior, output)
                case Batch() if worker is not None:
                    worker.take(message)
                case _:
                    raise ProtocolError(f"{type(message).__name__} out of turn: expected one Hello, then Batches")
    except BrokenPipeError:
        _log.warning("nobody reads the forecasts any more")
    finally:
        if worker is not None:
            worker.close()


def _frames(source: int) -> Iterator[bytes]:
    """Read frames until the end of the source, or SIGTERM."""
    buffer = FrameBuffer()
    with _terminations() as terminated, selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        selector.register(terminated, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if terminated in ready:
                return
            data = os.read(source, _READ_BYTES)
            if not data:
                if buffer.pending:
                    raise ProtocolError(f"stdin ended within a frame, after {buffer.pending} of its bytes")
                return
            yield from buffer.feed(data)


@contextmanager
def _terminations() -> Iterator[socket.socket]:
    """Make SIGTERM readable, so that it ends the loop between two frames and never within one."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous_fd = signal.set_wakeup_fd(writer.fileno())
    previous = signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    # The terminal's ^C goes to the whole group; the parent decides when this process ends.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield reader
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, previous)
        signal.set_wakeup_fd(previous_fd)
        reader.close()
        writer.close()


def _yield_cpu(hello: Hello) -> None:
    if hello.scheduling == "idle" and hasattr(os, "SCHED_IDLE"):
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except OSError as error:
            _log.warning("cannot run at SCHED_IDLE: %s", error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run on stdin and stdout."""
    parser = argparse.ArgumentParser(prog="python -m scoring.worker", description=__doc__.partition("\n")[0])
    parser.add_argument("--prior", type=Path, default=PRIOR, help="model to use while no champion is promoted")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(levelname)s: %(message)s")
    try:
        run(sys.stdin.fileno(), sys.stdout.fileno(), options.prior)
    except ProtocolError as error:
        _log.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
