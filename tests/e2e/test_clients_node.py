"""Unmodified Node clients, where Node is: OpenAI's SDK against the HTTP edge, @grpc/grpc-js against gRPC (F-07, F-17).

Their packages are installed by a lock file with hashes and without addresses, so that any registry may serve them.
"""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from sim.scenario import parse_scenario
from tests.documents import ROOT
from tests.service_under_test import EMBED, GPT4, SCENARIO, config_for, in_process

HERE = Path(__file__).parent / "node"
INSTALL_S, RUN_S = 240.0, 60.0
UNREACHABLE = ("ENOTFOUND", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EAI_AGAIN", "E404")


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the clients installed; skips where that cannot be."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    directory = tmp_path_factory.mktemp("node")
    for file in HERE.iterdir():
        if file.is_file():
            shutil.copy(file, directory)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    installed = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if installed.returncode and any(code in installed.stderr for code in UNREACHABLE):
        pytest.skip("npm reaches no registry that has the packages")
    assert installed.returncode == 0, installed.stderr
    return directory


def test_the_lock_file_names_no_registry() -> None:
    lock = (HERE / "package-lock.json").read_text(encoding="utf-8")
    assert '"resolved"' not in lock
    assert '"integrity": "sha512-' in lock


TROUBLES = {
    "aurora": (),
    "borealis": (Fault(kind=FaultKind.RATE_LIMIT, provider="aurora", retry_after_s=30),),
    "": tuple(Fault(kind=FaultKind.SERVER_ERROR, region=region) for region in ("eu-west", "us-east")),
}


@pytest.mark.parametrize("served_by", TROUBLES, ids=["calm", "limited", "down"])
@pytest.mark.parametrize("suite", ["openai.test.mjs", "grpc.test.mjs"])
async def test_node(clients: Path, tmp_path: Path, suite: str, served_by: str) -> None:
    async with ProviderFleet(parse_scenario(SCENARIO)) as fleet:
        models = config_for(fleet, tmp_path)["models"]
        for model in models:
            if model["id"] == GPT4:
                model["capabilities"].append("responses")
        await fleet.inject(*TROUBLES[served_by])
        async with in_process(fleet, tmp_path, models=models) as service:
            environment = os.environ | {
                "ROUTECAST_HTTP": f"{service.url}/v1",
                "ROUTECAST_GRPC": f"127.0.0.1:{service.ports.grpc}",
                "PROTOS": str(ROOT / "protos"),
                "MODEL": GPT4,
                "EMBED": EMBED,
                "SERVED_BY": served_by,
            }
            process = await asyncio.create_subprocess_exec(
                *("node", "--test", "--test-reporter=tap", suite),
                cwd=clients,
                env=environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            async with asyncio.timeout(RUN_S):
                output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert b"# fail 0" in output
    assert b"# pass 0" not in output
