"""`python -m sim.demo [--fast] [--out FOLDER]`: run the story, show it live, report it, and judge it.

Exit status: 0 the story happened, 1 it did not (what was missing is named) or a process failed, 2 the scenario is
wrong, 130 after Ctrl-C or SIGTERM.
"""

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop
from rich.console import Console

from sim.decode import FieldError, ScenarioError
from sim.demo.checks import judge
from sim.demo.evidence import read_evidence
from sim.demo.plot import draw
from sim.demo.processes import ProcessError
from sim.demo.report import departures, show, write_json
from sim.demo.run import Run, tell
from sim.demo.story import FAST_SCALE, FULL_SCALE, Story, StoryError, load_story

_INTERRUPTED = 130
_PLAIN_WIDTH = 180


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sim.demo", description="The failover story, live and judged.")
    parser.add_argument("--fast", action="store_true", help="tell it in under a minute")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="where report, plot and history go")
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    try:
        story = load_story(FAST_SCALE if options.fast else FULL_SCALE)
        with tempfile.TemporaryDirectory(prefix="routecast-demo-") as folder:
            run = uvloop.run(_interruptible(story, Path(folder), console))
            _keep(Path(folder), options.out)
    except (ScenarioError, FieldError, StoryError) as error:
        console.print(f"the scenario cannot be told: {error}", style="red", markup=False)
        return 2
    except ProcessError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted; all processes have ended")
        return _INTERRUPTED
    return _conclude(story, run, options.out, console)


async def _interruptible(story: Story, folder: Path, console: Console) -> Run:
    """Tell the story; SIGTERM ends it as Ctrl-C does, with every child stopped."""
    telling = asyncio.ensure_future(tell(story, folder, console))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, telling.cancel)
    return await telling


def _keep(folder: Path, out: Path) -> None:
    """Move history and logs to `out`, in place of those of the run before."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("data", "routecast.yaml", "service.log", "providers.log"):
        kept = out / name
        if kept.is_dir():
            shutil.rmtree(kept)
        shutil.move(folder / name, kept)


def _conclude(story: Story, run: Run, out: Path, console: Console) -> int:
    evidence = read_evidence(out / "data" / "history", story, run)
    checks, left = judge(story, evidence, run.sent, run.began), departures(story, evidence, run.began)
    show(console, evidence, left, checks)
    write_json(out / "report.json", story, evidence, run.sent, left, checks)
    draw(out / "demo.png", story, evidence, run)
    console.print(f"report {out / 'report.json'}, plot {out / 'demo.png'}")
    console.print(f"ask the history yourself: routecast analytics failovers --data {out / 'data'}")
    missing = [check for check in checks if not check.held]
    for check in missing:
        console.print(f"did not happen: {check.sentence} ({check.figures})", style="bold red", markup=False)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
