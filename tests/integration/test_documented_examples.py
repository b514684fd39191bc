"""What the documents show is run: the README's configuration, code and commands, against simulated providers.

The rule of this file: the text of a document is used as it stands; only addresses and keys are replaced. Commands of
tools that are not installed here (those that do not start with .venv/bin/) are left out.
"""

import json
import re
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config_file import load
from service.main import Ports, running
from sim.provider_server import ProviderFleet
from sim.scenario import parse_scenario
from tests.documents import Document, document
from tests.service_under_test import run_to_end

README, FIRST_STEPS = document("README.md"), document("docs/guides/first-steps.md")


def _environment(doc: Document) -> dict[str, str]:
    return dict.fromkeys(re.findall(r"\$\{(\w+)\}", doc.text), "a-key")


def _configuration(doc: Document) -> str:
    (block,) = (block for block in doc.blocks("yaml") if "providers:" in block)
    return block


async def _run(directory: Path, *words: str, environment: dict[str, str] | None = None) -> str:
    """Run a command in `directory`; returns what it printed, fails with what it said."""
    code, printed, said = await run_to_end(*words, cwd=directory, environment=environment)
    assert code == 0, f"{shlex.join(words)}\n{printed}{said}"
    return printed


@pytest.fixture(params=[README, FIRST_STEPS], ids=lambda doc: doc.name)
def doc(request: pytest.FixtureRequest) -> Document:
    chosen: Document = request.param
    return chosen


@pytest.fixture
async def ports(doc: Document, tmp_path: Path) -> AsyncIterator[Ports]:
    """The configuration of the document, served over simulated providers of the same names and models."""
    tree = yaml.safe_load(_configuration(doc))
    simulated = [_simulated(tree, provider["name"]) for provider in tree["providers"]]
    scenario = {"name": "documents", "seed": 3, "duration_s": 600, "providers": simulated}
    async with ProviderFleet(parse_scenario(json.dumps(scenario))) as fleet:
        for provider in tree["providers"]:
            provider["base_url"] = fleet.url(provider["name"])
        tree |= {
            "server": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0"},
            "scoring": {"enabled": False},
            "history": {"flush_s": 0.05},
        }
        file = tmp_path / "served.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        async with running(load(file, _environment(doc))) as ports:
            yield ports


def _simulated(tree: dict[str, Any], provider: str) -> dict[str, Any]:
    models = [
        {"id": model["id"], "provider_model_id": endpoint["provider_model"]}
        for model in tree["models"]
        for endpoint in model["endpoints"]
        if endpoint["provider"] == provider
    ]
    speed = {"ttft_ms": 1, "tokens_per_s": 20000}
    return {"name": provider, "region": "here", "zone": "here-a", "models": models, **speed}


def _addressed(text: str, ports: Ports) -> str:
    return text.replace("127.0.0.1:50051", f"127.0.0.1:{ports.grpc}").replace(
        "127.0.0.1:8088", f"127.0.0.1:{ports.http}"
    )


@pytest.mark.parametrize("doc", [README], ids=["README.md"], indirect=True)
@pytest.mark.parametrize("client", ["OpenAI(", "RouterServiceStub("])
async def test_python_examples_are_answered(client: str, ports: Ports, tmp_path: Path) -> None:
    (block,) = (block for block in README.blocks("python") if client in block)
    printed = await _run(tmp_path, sys.executable, "-c", _addressed(block, ports))
    assert "openai:openai/gpt-4o" in printed
    assert "last asked: Hello" in printed


async def test_commands_run(doc: Document, ports: Ports, tmp_path: Path) -> None:
    (tmp_path / "routecast.yaml").write_text(_configuration(doc), encoding="utf-8")
    commands = [command for command in doc.commands() if command.startswith(".venv/bin/")]
    assert any("buf curl" in command for command in commands)
    assert any("analytics" in command for command in commands)
    for command in commands:
        program, *words = shlex.split(_addressed(command, ports))
        if "serve" in words or "sim.provider_server" in words:
            continue
        executable = str(Path(sys.executable).parent / Path(program).name)
        assert await _run(tmp_path, executable, *words, environment=_environment(doc)), command
