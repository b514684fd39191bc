"""The simulated providers as a process: `python -m sim.provider_server --scenario FILE`.

The rule of this file: a parent never has to poll or sleep. When everything listens, one JSON line goes to stdout (and
to --ports-file, appearing whole): `{"control_port": 40001, "ports": {"aurora": 40002, ...}}`. SIGTERM or SIGINT ends
the process with status 0, a bad scenario with 2, a port that is taken with 1.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from sim.decode import FieldError
from sim.faults import Fault
from sim.provider import ReceivedRequest
from sim.provider_control import ProviderControl
from sim.provider_fleet import ProviderFleet, ProviderStats
from sim.scenario import Scenario, ScenarioError, load_scenario

__all__ = ["Fault", "ProviderFleet", "ProviderStats", "ReceivedRequest", "main", "serve"]


async def serve(scenario: Scenario, *, control_port: int = 0, ports_file: Path | None = None, start: bool) -> None:
    """Serve `scenario` until SIGTERM or SIGINT; `start` starts its clock at once, else POST /start does.

    Raises:
        OSError: a port is taken.
    """
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with ProviderFleet(scenario) as fleet:
        control = ProviderControl(fleet)
        try:
            ready = {
                "control_port": await control.start(control_port),
                "ports": {name: fleet.port(name) for name in fleet.names},
            }
            if start:
                await fleet.start_clock()
            _announce(json.dumps(ready), ports_file)
            await ended.wait()
        finally:
            await control.stop()


def _announce(line: str, ports_file: Path | None) -> None:
    if ports_file is not None:
        partial = ports_file.with_name(ports_file.name + ".tmp")
        partial.write_text(line + "\n", encoding="utf-8")
        partial.replace(ports_file)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sim.provider_server", description="Simulated LLM providers.")
    parser.add_argument("--scenario", type=Path, required=True, help="YAML file, see sim/scenarios")
    parser.add_argument("--control-port", type=int, default=0, help="port of the control listener (default: free)")
    parser.add_argument("--ports-file", type=Path, help="also write the line with the bound ports here")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiply the story's durations (0.25: four times fast)"
    )
    parser.add_argument("--start", action="store_true", help="start the scenario's clock at once")
    options = parser.parse_args(argv)
    try:
        scenario = load_scenario(options.scenario).scaled(options.scale)
    except (ScenarioError, FieldError) as error:
        sys.stderr.write(f"{options.scenario}: {error}\n")
        return 2
    try:
        uvloop.run(
            serve(scenario, control_port=options.control_port, ports_file=options.ports_file, start=options.start)
        )
    except OSError as error:
        sys.stderr.write(f"cannot serve: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
