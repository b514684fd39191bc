"""What retraining on a long history costs: elapsed and processor time, and the peak memory of `routecast retrain`.

`python -m bench.retraining` makes a history of --rows vectors and runs the command on it, in a process of its own. The
vectors and attempts are those of simulated worlds; hours of them are laid one after the other until there are enough,
which costs what a history without repetition costs, but says nothing about what is learned from it.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from analytics.compaction import Compactor
from analytics.files import LIVE, copy_to, from_files
from analytics.records import AttemptRecord, HealthRecord, Record, columns_of
from analytics.segments import SegmentWriter
from routing.outcomes import Outcome
from scoring.features import FEATURE_SET, Member, matrix
from sim.traffic import play, traces
from sim.world import START_S, Setting, make_world

# Far from the seeds of the prior, of evaluation and of the scorecard.
_FIRST_SEED = 910_000_000
_WORLDS = 3
_TICK_S = 1.0
# Longer than windows and baselines remember, so that no hour is compared with another.
_PAUSE_S = 3_700.0


def write_history(root: Path, rows: int, until: float) -> tuple[int, int]:
    """Write a history that ends at `until` (unix seconds); return how many vectors and attempts it holds."""
    base = root.with_name("base")
    writer = SegmentWriter(base, "bench", 1)
    span_s = max(_write_world(writer, seed) for seed in range(_FIRST_SEED, _FIRST_SEED + _WORLDS))
    writer.close()
    counts = []
    with duckdb.connect(config={"threads": 1}) as connection:
        per_copy = _count(connection, base, "health")
        copies = -(-rows // per_copy)
        for stream in ("health", "attempts"):
            target = root / LIVE / "bench-1" / stream
            target.mkdir(parents=True)
            sources = from_files(sorted(base.glob(f"{LIVE}/*/{stream}/*.parquet")))
            for copy in range(copies):
                shift_us = round((until - (copies - copy) * (span_s + _PAUSE_S) - START_S) * 1e6)
                moved = ", ".join(_moved(column.name, column.duckdb_type, shift_us) for column in columns_of(stream))
                query = f"{sources} SELECT {moved} ORDER BY time"
                connection.execute(copy_to(query, target / f"{copy + 1:010d}.parquet"))
            counts.append(copies * _count(connection, base, stream))
    shutil.rmtree(base)
    while Compactor(root, grace_s=0.0).run_once(until).segments:
        pass
    Compactor(root, grace_s=0.0).run_once(until + 1.0)
    return counts[0], counts[1]


def _moved(name: str, duckdb_type: str, shift_us: int) -> str:
    return f'{name} + to_microseconds({shift_us}) AS "{name}"' if duckdb_type == "TIMESTAMP" else f'"{name}"'


def _count(connection: duckdb.DuckDBPyConnection, root: Path, stream: str) -> int:
    files = from_files(sorted(root.glob(f"{LIVE}/*/{stream}/*.parquet")))
    return int(connection.execute(f"{files} SELECT count(*)").fetchall()[0][0])


def _write_world(writer: SegmentWriter, seed: int) -> float:
    world = make_world(seed, Setting.STEADY)
    found = traces(world)
    names = [f"{seed}/{regime.id}" for regime in world.regimes]
    members = [Member(regime.place.provider, regime.place.region) for regime in world.regimes]
    attempts: list[Record] = []
    for name, member, trace in zip(names, members, found, strict=True):
        attempts += [
            AttemptRecord(
                replica="bench", time=a.time, started=a.time - (a.ttft_s or 0.0), request_id="", decision_id="",
                number=1, kind="live", endpoint=name, provider=member.provider, region=member.region, zone="",
                model="m", agent="", tenant="", outcome=a.outcome.value, http_status=None, error="",
                ttft_ms=None if a.ttft_s is None or a.outcome is not Outcome.OK else a.ttft_s * 1e3, latency_ms=1.0,
                input_tokens=None, output_tokens=None, cost_usd=None,
            )
            for a in trace.attempts
        ]  # fmt: skip
    writer.write(AttemptRecord.stream, attempts)
    writer.write(
        HealthRecord.stream,
        [
            HealthRecord(
                replica="bench-scoring", time=now, endpoint=name, provider=member.provider, region=member.region,
                model="m", state="active", admission=1.0, score=1.0, risk=None, forecaster="",
                feature_set=FEATURE_SET, features=tuple(row),
            )
            for now, windows in play(found, world.duration_s, _TICK_S)
            for name, member, row in zip(names, members, matrix(members, windows, now).tolist(), strict=True)
        ],
    )  # fmt: skip
    return world.duration_s


def main() -> None:
    """Print what it costs."""
    parser = argparse.ArgumentParser(prog="python -m bench.retraining", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="where to make the data directory, and leave it (default: nowhere)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retraining-") as temporary:
        data: Path = options.data or Path(temporary) / "data"
        if not (data / "history").exists():
            rows, attempts = write_history(data / "history", options.rows, time.time())
            print(f"{rows:,} vectors and {attempts:,} attempts", flush=True)
        began = time.monotonic()
        # One thread: threads that wait for each other burn processor time too.
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        command = (sys.executable, "-m", "service.cli", "retrain", "--since", "3650d", "--watch", "0s", "--block", "1h")
        ended = subprocess.run([*command, "--data", str(data)], env=alone, check=False)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"exit status {ended.returncode}; {time.monotonic() - began:.0f} s elapsed, "
            f"{used.ru_utime + used.ru_stime:.0f} CPU s, peak memory {used.ru_maxrss / 1024:.0f} MB"
        )


if __name__ == "__main__":
    main()
