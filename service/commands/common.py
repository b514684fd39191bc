"""What the subcommands share: errors for the user, the console, and the way options are written."""

import re
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

OUT = Console(width=None if sys.stdout.isatty() else 160)
ERR = Console(stderr=True)

ConfigFile = Annotated[Path, Parameter(help="The configuration file.")]
Data = Annotated[Path, Parameter(help="The service's data_dir.")]
Since = Annotated[str, Parameter(help="How far back: 90s, 15m, 6h or 30d.")]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON instead of a table.")]


class InputError(Exception):
    """The command's input was wrong: exit code 2."""


class FailureError(Exception):
    """The command could not do its work: exit code 1."""


def seconds(text: str, option: str = "--since") -> float:
    """Return the seconds of a span such as "6h" that was given for `option`. Raises InputError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not match:
        raise InputError(f"{option} {text!r}: expected a number and a unit, for example 90s, 15m, 6h or 30d")
    return float(match[1]) * _UNITS[match[2]]
