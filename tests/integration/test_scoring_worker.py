"""The scoring process as a real process over real pipes."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

import pytest

from analytics.store import connect
from routing.outcomes import Outcome
from scoring.artifact import checksum, load
from scoring.features import FEATURE_SET, NAMES
from scoring.packing import pack
from scoring.protocol import (
    Batch,
    EndpointInfo,
    EndpointStatus,
    Forecast,
    FrameBuffer,
    Hello,
    Note,
    Observation,
    Outbound,
    Ready,
    decode_outbound,
    encode,
)
from scoring.registry import PRIOR, Registry

START = 1_700_000_000.0
DEADLINE_S = 60.0
ENDPOINTS = [EndpointInfo("slow", "p1", "eu", "a", "m"), EndpointInfo("calm", "p2", "us", "b", "m")]


class Scoring:
    """One scoring process with both of its pipes."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scoring.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.sent = 0
        self._messages: Queue[Outbound] = Queue()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        buffer = FrameBuffer()
        while data := os.read(self.process.stdout.fileno(), 65536):
            for payload in buffer.feed(data):
                self._messages.put(decode_outbound(payload))

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def hello(self) -> None:
        self.write(encode(Hello(ENDPOINTS, str(self.data_dir), "test", 1.0, "normal")))

    def next(self) -> Outbound:
        try:
            return self._messages.get(timeout=DEADLINE_S)
        except Empty:
            raise AssertionError(f"no message within {DEADLINE_S} s; status {self.process.poll()}") from None

    def second(self, at: int, ttft_s: float = 0.05, failing: float = 0.0) -> None:
        """Send one second of traffic: 20 attempts per endpoint; "slow" has this TTFT and this share of failures."""
        seen = []
        for endpoint, (own_ttft_s, own_failing) in enumerate(((ttft_s, failing), (0.05, 0.0))):
            for i in range(20):
                name, began = f"{at}-{i}", START + at + i / 20
                jitter = 1 + 0.1 * ((7 * i + at) % 5)
                failed = i < round(20 * own_failing)
                seen.append(Observation("started", endpoint, name, began))
                seen.append(
                    Observation("finished", endpoint, name, began + 0.01, Outcome.SERVER_ERROR)
                    if failed
                    else Observation(
                        "finished", endpoint, name, began + 0.02, Outcome.OK, own_ttft_s * jitter, None, 20, 0.2
                    )
                )
        statuses = [EndpointStatus("slow", "active", 1.0, 0.75)] if at == 0 else []
        self.write(encode(Batch(START + at + 1, seen, statuses)))
        self.sent += 1

    def forecast(self) -> Forecast:
        message = self.next()
        assert isinstance(message, Forecast), message
        return message

    def end(self) -> tuple[int, str]:
        """Close stdin; return the exit status and what was said on stderr."""
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        status = self.process.wait(DEADLINE_S)
        return status, self.process.stderr.read().decode()

    def close(self) -> None:
        """Make sure that the process and its pipes are gone."""
        if self.process.poll() is None:
            self.process.kill()
        self._reader.join(DEADLINE_S)
        with contextlib.suppress(BrokenPipeError), self.process:
            pass


@pytest.fixture
def scoring(tmp_path: Path) -> Iterator[Scoring]:
    with contextlib.closing(Scoring(tmp_path)) as started:
        yield started


def test_a_cold_start_and_a_ramp_raise_the_risk_before_the_outage(scoring: Scoring) -> None:
    scoring.hello()
    assert isinstance(scoring.next(), Ready)
    forecasts = []
    for at in range(90):
        climbed = max(0.0, min(1.0, (at - 60) / 25))
        scoring.second(at, ttft_s=0.05 * (1 + 5 * climbed), failing=0.15 * climbed)
        forecasts.append(scoring.forecast())
    threshold = forecasts[0].threshold
    assert forecasts[5].risks == {}  # too little is known yet
    assert all(f.risks["slow"] < threshold for f in forecasts[40:60])
    assert all(f.risks["calm"] < threshold for f in forecasts[40:])
    alarm = next(i for i, f in enumerate(forecasts) if f.risks.get("slow", 0.0) >= threshold)
    assert 60 < alarm < 80
    assert scoring.end()[0] == 0

    with connect(scoring.data_dir / "history") as connection:
        rows = connection.execute(
            "SELECT count(*), count(risk), min(len(features)), any_value(feature_set), any_value(replica) FROM health"
        ).fetchone()
        statuses = connection.execute("SELECT DISTINCT endpoint, state, score FROM health ORDER BY endpoint").fetchall()
    assert rows is not None
    assert rows[0] == 2 * len(forecasts)
    assert rows[1] == sum(len(f.risks) for f in forecasts)
    assert rows[2:] == (len(NAMES), FEATURE_SET, "test-scoring")
    assert statuses == [("calm", "unknown", 1.0), ("slow", "active", 0.75)]


def test_a_promoted_model_is_picked_up_while_running(scoring: Scoring) -> None:
    scoring.hello()
    first = scoring.next()
    assert isinstance(first, Ready)
    scoring.second(0)
    assert scoring.forecast().forecaster == first.forecaster

    version = promote_copy(scoring.data_dir)
    scoring.second(1)
    assert scoring.forecast().forecaster == first.forecaster
    assert scoring.next() == Ready(version, 0.123)
    scoring.second(2)
    assert (forecast := scoring.forecast()).forecaster == version
    assert forecast.threshold == 0.123


def promote_copy(data_dir: Path) -> str:
    """Register the prior under another name and threshold, and promote it."""
    prior = load(PRIOR)
    arrays = pack(prior.forecaster)
    manifest = dataclasses.replace(prior.manifest, version="copy-1", threshold=0.123, arrays_sha256=checksum(arrays))
    registry = Registry(data_dir)
    registry.register(arrays, manifest)
    registry.promote(manifest.version)
    return manifest.version


def test_f20_a_champion_that_vanishes_leaves_the_prior(scoring: Scoring) -> None:
    version = promote_copy(scoring.data_dir)
    (scoring.data_dir / "models" / version / "arrays.npz").unlink()
    scoring.hello()
    note, ready = scoring.next(), scoring.next()
    assert isinstance(note, Note)
    assert "arrays.npz: cannot be read" in note.text
    assert ready == Ready(load(PRIOR).manifest.version, load(PRIOR).manifest.threshold)


def test_f20_a_broken_new_champion_does_not_push_out_the_one_that_works(scoring: Scoring) -> None:
    scoring.hello()
    ready = scoring.next()
    promote_copy(scoring.data_dir)
    (scoring.data_dir / "models" / "copy-1" / "manifest.json").write_text("{")
    scoring.second(0)
    forecast, note, again = scoring.forecast(), scoring.next(), scoring.next()
    assert isinstance(note, Note)
    assert f"{forecast.forecaster} stays" in note.text
    assert again == ready


def test_f20_without_any_model_it_lives_on_without_a_forecast(tmp_path: Path) -> None:
    with contextlib.closing(Scoring(tmp_path, "--prior", str(tmp_path / "nothing"))) as scoring:
        scoring.hello()
        note = scoring.next()
        assert isinstance(note, Note)
        assert "no forecast is made" in note.text
        assert scoring.next() == Ready("", 1.0)
        for at in range(3):
            scoring.second(at)
            assert scoring.forecast() == Forecast(START + at + 1, "", 1.0, {})
        assert scoring.end()[0] == 0


def test_f20_history_that_cannot_be_written_is_told_and_survived(scoring: Scoring) -> None:
    (scoring.data_dir / "history").write_text("a file is in the way")
    scoring.hello()
    note, ready = scoring.next(), scoring.next()
    assert isinstance(note, Note)
    assert "health is not recorded" in note.text
    assert isinstance(ready, Ready)
    scoring.second(0)
    assert scoring.forecast().forecaster == ready.forecaster


def test_sigterm_flushes_and_ends_well(scoring: Scoring) -> None:
    scoring.hello()
    scoring.next()
    scoring.second(0)
    scoring.forecast()
    scoring.process.send_signal(signal.SIGTERM)
    assert scoring.process.wait(DEADLINE_S) == 0
    with connect(scoring.data_dir / "history") as connection:
        assert connection.execute("SELECT count(*) FROM health").fetchone() == (2,)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "expected at most"),
        (b"\x00\x00\x00\x01\xc1", "not a Hello or Batch"),
        (encode(Batch(1.0)), "Batch out of turn"),
        (b"\x00\x00\x01\x00abc", "stdin ended within a frame"),
    ],
)
def test_garbage_ends_it_with_a_clear_error(scoring: Scoring, frame: bytes, message: str) -> None:
    scoring.write(frame)
    status, said = scoring.end()
    assert status == 2
    assert message in said
    assert "Traceback" not in said


def test_an_unknown_endpoint_ends_it_with_a_clear_error(scoring: Scoring) -> None:
    scoring.hello()
    scoring.write(encode(Batch(1.0, [Observation("started", 7, "x", 1.0)])))
    status, said = scoring.end()
    assert status == 2
    assert "observation of endpoint 7: expected 0 to 1" in said


def test_f20_a_champion_that_cries_wolf_is_taken_out_of_service_by_itself(scoring: Scoring) -> None:
    """Drift is injected: probabilities are off by a factor of e^9 in a calm world. The champion before it takes over,
    running requests see nothing of it, and the step is an event in history."""
    prior = load(PRIOR)
    calibration = dataclasses.replace(prior.forecaster.calibration, intercept=5.0)
    arrays = pack(dataclasses.replace(prior.forecaster, calibration=calibration))
    wolf = dataclasses.replace(prior.manifest, version="wolf-1", arrays_sha256=checksum(arrays))
    registry = Registry(scoring.data_dir)
    registry.register(arrays, wolf)
    registry.promote("wolf-1")
    scoring.hello()
    assert scoring.next() == Ready("wolf-1", prior.manifest.threshold)
    said: list[Outbound] = []
    for at in range(0, 7200, 20):
        scoring.second(at)
        said.append(scoring.next())
        while isinstance(said[-1], Note | Ready):
            said.append(scoring.next())
        if said[-1].forecaster != "wolf-1":
            break
    notes = [message.text for message in said if isinstance(message, Note)]
    assert any(f"wolf-1 was taken out of service, {prior.manifest.version} serves" in text for text in notes), notes
    assert isinstance(said[-1], Forecast)
    assert said[-1].forecaster == prior.manifest.version
    assert registry.roles().retired == ("wolf-1",)
    assert scoring.end()[0] == 0
    with connect(scoring.data_dir / "history") as connection:
        events = connection.execute(
            "SELECT event, version, other, actor, value > threshold FROM model_events WHERE event = 'rolled_back'"
        ).fetchall()
    assert events == [("rolled_back", "wolf-1", prior.manifest.version, "monitor", True)]
