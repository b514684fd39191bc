"""Arrivals and token sizes of real traces, as compact extracts that ship with the simulator.

The rule of this file: the extracts are read as they are; `sim.traces.extract` is how they were made, `README.md` says
whose they are.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

ARCHIVE = Path(__file__).with_name("traces.npz")


class TraceName(StrEnum):
    """Which trace: Azure's conversation and code services (2023), Mooncake's conversations (2024, long contexts)."""

    AZURE_CONV = "azure_conv"
    AZURE_CODE = "azure_code"
    MOONCAKE = "mooncake"


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One trace of n requests in order of arrival.

    `gaps`: float64 n, the time from the request before in units of the mean gap (mean 1). `input_tokens` and
    `output_tokens`: int64 n, >= 1.
    """

    gaps: npt.NDArray[np.float64]
    input_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]


@cache
def load_trace(name: TraceName) -> Trace:
    """Load a trace; the result is shared and must not be written to."""
    with np.load(ARCHIVE, allow_pickle=False) as archive:
        gaps_ms = archive[f"{name}_gap_ms"].astype(np.float64)
        input_tokens = archive[f"{name}_input_tokens"].astype(np.int64)
        output_tokens = archive[f"{name}_output_tokens"].astype(np.int64)
    trace = Trace(gaps_ms / gaps_ms.mean(), np.maximum(input_tokens, 1), np.maximum(output_tokens, 1))
    for array in (trace.gaps, trace.input_tokens, trace.output_tokens):
        array.setflags(write=False)
    return trace
