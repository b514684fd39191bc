"""`make bench`: run the benchmarks, print one table each, and write build/bench.json.

Costs are CPU µs, but where a benchmark says that it measures elapsed time.

`python -m bench engine edge` runs those two alone.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import edge, engine, failover, layers, scoring
from bench.figure import Figure

_BENCHES: dict[str, Callable[[], list[Figure]]] = {
    "engine": engine.run,
    "edge": edge.run,
    "layers": layers.run,
    "failover": failover.run,
    "scoring": scoring.run,
}
_OUTPUT = Path("build/bench.json")


def main() -> None:
    """Run what the command line names; everything by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benches", nargs="*", choices=[*_BENCHES, []], help="which to run; all by default")
    chosen = parser.parse_args().benches or list(_BENCHES)
    console, results = Console(width=120), {}
    for name in chosen:
        figures = _BENCHES[name]()
        results[name] = [figure.as_dict() for figure in figures]
        console.print(_table(name, figures))
    _OUTPUT.parent.mkdir(exist_ok=True)
    _OUTPUT.write_text(json.dumps({"python": platform.python_version(), "benches": results}, indent=2) + "\n")
    console.print(f"written to {_OUTPUT}")


def _table(name: str, figures: list[Figure]) -> Table:
    table = Table(title=name, title_justify="left")
    for column in ("what", "µs", "ratio", "against"):
        table.add_column(column, justify="left" if column in ("what", "against") else "right")
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        table.add_row(figure.what, f"{figure.us:.2f}", ratio, figure.against)
    return table


if __name__ == "__main__":
    main()
