"""`python -m sim.traces.extract DIRECTORY`: make traces.npz from the published traces.

The rule of this file: requests keep their order, gap, and token counts; nothing else is taken. DIRECTORY holds
`azure_llm_trace/{conv,code}.csv` (Azure/AzurePublicDataset, data/AzureLLMInferenceTrace_*.csv) and
`mooncake_trace/conversation_trace.jsonl` (kvcache-ai/Mooncake, FAST25-release/traces).
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sim.traces import ARCHIVE, TraceName

_Columns = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]
# Mooncake's timestamps are in steps of 3 s; requests of one step are spread evenly over it, in order.
_MOONCAKE_STEP_MS = 3000.0


def extract(directory: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Read the published files; returns the arrays of the archive.

    Raises:
        OSError, KeyError, ValueError: a file is missing or is not what its publisher describes.
    """
    sources = {
        TraceName.AZURE_CONV: _azure(directory / "azure_llm_trace" / "conv.csv"),
        TraceName.AZURE_CODE: _azure(directory / "azure_llm_trace" / "code.csv"),
        TraceName.MOONCAKE: _mooncake(directory / "mooncake_trace" / "conversation_trace.jsonl"),
    }
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name, (time_ms, input_tokens, output_tokens) in sources.items():
        arrays[f"{name}_gap_ms"] = np.diff(np.round(time_ms), prepend=np.round(time_ms[0])).astype(np.uint32)
        arrays[f"{name}_input_tokens"] = input_tokens.astype(np.uint32)
        arrays[f"{name}_output_tokens"] = output_tokens.astype(np.uint16)
    return arrays


def _azure(path: Path) -> _Columns:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # The trace has seven digits of a second, datetime takes six.
    times = np.array([datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows])
    order = np.argsort(times, kind="stable")
    sizes = np.array([(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in rows])[order]
    return (times[order] - times.min()) * 1000, sizes[:, 0], sizes[:, 1]


def _mooncake(path: Path) -> _Columns:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    steps = np.array([row["timestamp"] for row in rows], dtype=np.float64)
    _, place, count = np.unique(steps, return_inverse=True, return_counts=True)
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    within = np.arange(len(steps)) - first[place]
    sizes = np.array([(row["input_length"], row["output_length"]) for row in rows])
    return steps + _MOONCAKE_STEP_MS * within / count[place], sizes[:, 0], sizes[:, 1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the archive."""
    parser = argparse.ArgumentParser(prog="python -m sim.traces.extract", description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args(arguments).directory
    np.savez_compressed(ARCHIVE, allow_pickle=False, **extract(directory))
    sys.stdout.write(f"{ARCHIVE.name}: {ARCHIVE.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
