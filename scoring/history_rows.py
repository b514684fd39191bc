"""History as the training job sees it: usable rows, split by time, and the incidents that the labels tell of.

The rule of this file: the future never informs the past. The parts follow one another, with a gap of one horizon
between them, because a label looks that far ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from analytics.training import TrainingRows, WatchedRows
from scoring.alarms import Interval, Series
from scoring.features import FEATURES, in_domain

_Floats = npt.NDArray[np.float64]
_Places = npt.NDArray[np.intp]
# Ticks further apart than this belong to different runs of the service.
_MAX_GAP_S = 30.0


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """One endpoint's rows, cut where the service was not running, and its incidents."""

    runs: tuple[_Places, ...]
    incidents: tuple[Interval, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one period, ordered by time and endpoint; `usable` marks those with a known label inside the domain."""

    x: _Floats
    y: npt.NDArray[np.int8]
    usable: npt.NDArray[np.bool_]
    judged: npt.NDArray[np.bool_]
    time: _Floats
    endpoint: npt.NDArray[np.object_]
    provider: npt.NDArray[np.object_]
    horizon_s: float
    _endpoints: Sequence[_Endpoint] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Asked for once per contender and threshold, and the same each time.
        object.__setattr__(self, "_endpoints", [self._endpoint(own) for own in _places(self.endpoint)])

    @property
    def groups(self) -> list[str]:
        """The group of each row, by which it is calibrated."""
        return [str(name) for name in self.provider]

    @property
    def tick_s(self) -> float:
        """The usual time between two rows of one endpoint; 0 with fewer than two rows."""
        ticks = np.unique(self.time)
        return float(np.median(np.diff(ticks))) if len(ticks) > 1 else 0.0

    @property
    def labelled(self) -> tuple[_Floats, npt.NDArray[np.int8]]:
        """The usable rows and their labels."""
        return self.x[self.usable], self.y[self.usable]

    @property
    def incidents(self) -> int:
        """How many stretches of positive labels there are."""
        return sum(len(endpoint.incidents) for endpoint in self._endpoints)

    def series(self, risk: _Floats) -> list[Series]:
        """One series per endpoint and run of the service, from one risk per row; outside the domain it is 0."""
        risk = np.where(self.judged, risk, 0.0)
        return [
            Series(self.time[run], risk[run], endpoint.incidents)
            for endpoint in self._endpoints
            for run in endpoint.runs
        ]

    def _endpoint(self, own: _Places) -> _Endpoint:
        breaks = np.flatnonzero(np.diff(self.time[own]) > _MAX_GAP_S) + 1
        return _Endpoint(tuple(np.split(own, breaks)), tuple(self._incidents_of(own)))

    def _incidents_of(self, own: _Places) -> list[Interval]:
        """Turn stretches of positive labels into the times they look at: the first looks a whole horizon ahead."""
        time, y = self.time[own], self.y[own]
        edges = np.diff(y.astype(np.int8), prepend=np.int8(0), append=np.int8(0))
        starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
        return [
            (float(time[a]) + self.horizon_s, max(float(time[a]) + self.horizon_s, float(time[b])))
            for a, b in zip(starts, ends, strict=True)
        ]


def _places(endpoint: npt.NDArray[np.object_]) -> list[_Places]:
    """Return the rows of each endpoint, by its name."""
    names = sorted(set(endpoint.tolist()))
    number = {name: i for i, name in enumerate(names)}
    codes = np.fromiter((number[name] for name in endpoint.tolist()), dtype=np.int32, count=len(endpoint))
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.searchsorted(codes[order], np.arange(1, len(names)))) if names else []


def split(rows: TrainingRows, shares: tuple[float, ...], horizon_s: float) -> list[Part]:
    """Split by time into parts that span the given shares of the usable rows (they add up to 1), with gaps of one
    horizon. The parts show the rows, which are in the order of time; they hold no copies.
    """
    x = rows.x if len(rows.x) else np.empty((0, len(FEATURES)))
    judged = in_domain(x) & np.isfinite(x).all(axis=1)
    usable = rows.mask & judged
    bounds = (
        np.quantile(rows.time[usable], np.cumsum([0.0, *shares]).clip(0, 1))
        if usable.any()
        else np.zeros(len(shares) + 1)
    )
    parts = []
    for i in range(len(shares)):
        first = bounds[i] + (horizon_s if i else 0.0)
        chosen = slice(*np.searchsorted(rows.time, (first, np.nextafter(bounds[i + 1], np.inf))).tolist())
        parts.append(
            Part(
                x[chosen],
                rows.y[chosen],
                usable[chosen],
                judged[chosen],
                rows.time[chosen],
                rows.endpoint[chosen],
                rows.provider[chosen],
                horizon_s,
            )
        )  # fmt: skip
    return parts


def watched_part(rows: WatchedRows, horizon_s: float) -> Part:
    """Return the moments at which champion and shadow both spoke; without features, as what they said is judged."""
    spoke = np.ones(len(rows.time), dtype=np.bool_)
    nothing = np.empty((len(rows.time), 0))
    return Part(nothing, rows.y, rows.mask, spoke, rows.time, rows.endpoint, rows.provider, horizon_s)
