"""Which policies can be on the card, and how a tuned one is named.

The rule of this file: `tuned-X` is policy X with the parameters that did best on the calibration seeds, whether X is
known as `tuned-X` itself (the tuned breaker) or by its published defaults.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sim.policies import GRIDS, NAMES
from sim.scorecard.runner import ORACLE, STATIC, Contender

_TUNED = "tuned-"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name on the card; with a `grid` its parameters are still to be tuned."""

    contender: Contender
    grid: Mapping[str, Sequence[float]] | None


def known_names() -> tuple[str, ...]:
    """Return every name that `entry` understands: the defaults first, then the tuned ones, the oracle last."""
    plain = [name for name in NAMES if name not in (STATIC, ORACLE) and not name.startswith(_TUNED)]
    tuned = [name if name.startswith(_TUNED) else _TUNED + name for name in NAMES if name in GRIDS]
    unlisted = [name for name in NAMES if name.startswith(_TUNED) and name not in GRIDS]
    return (STATIC, *plain, *unlisted, *tuned, ORACLE)


def entry(name: str) -> Entry:
    """Return the entry of a name.

    Raises:
        ValueError: there is no such policy; the message lists those there are.
    """
    if name not in known_names():
        raise ValueError(f"policies: there is no {name!r}; expected some of {', '.join(known_names())}")
    base = name if name in (*NAMES, ORACLE, STATIC) else name.removeprefix(_TUNED)
    return Entry(Contender(name, base), GRIDS.get(base) if name.startswith(_TUNED) else None)
