"""The `routecast` command as operators run it: exit codes, messages with paths, tables and JSON from real history.

Most run `main` in this process, which is all that the console script does; a second of imports for each case is saved.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from service.cli import main
from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import DEADLINE_S, in_process, run_to_end

ROOT = Path(__file__).parents[2]
GOOD = """\
providers:
  - name: one
    base_url: http://127.0.0.1:9/v1
models:
  - id: m
    endpoints: [{provider: one, provider_model: m}]
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """A finished command."""

    code: int
    out: str
    errors: str


Routecast = Callable[..., Ended]


@pytest.fixture
def routecast(capsys: pytest.CaptureFixture[str]) -> Routecast:
    def run(*arguments: str) -> Ended:
        code: Any = 0
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run


def _checked(routecast: Routecast, directory: Path, text: str) -> Ended:
    path = directory / "routecast.yaml"
    path.write_text(text, encoding="utf-8")
    return routecast("check-config", "--config", str(path))


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid_for_the_command_and_for_editors(
    routecast: Routecast, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI", "OPENROUTER", "MISTRAL", "GROQ", "TOGETHER", "AZURE_OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{name}_API_KEY", "x")
    ended = routecast("check-config", "--config", str(example))
    assert ended.code == 0, ended.errors
    assert "valid;" in ended.out
    schema = json.loads((ROOT / "docs" / "config.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(example.read_text()))


def test_the_committed_schema_is_the_one_in_force(routecast: Routecast) -> None:
    ended = routecast("schema")
    assert ended.code == 0
    assert ended.out == (ROOT / "docs" / "config.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(ended.out))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a mapping with `providers` and `models`"),
        ("- 1", "expected a mapping with `providers` and `models`"),
        ("providers: [", "(line 1): not valid YAML"),
        ("models: []", "providers: missing, expected a value"),
        (GOOD + "servers: {}\n", "servers (line 7): unknown field, expected one of data_dir, history, idempotency,"),
        (GOOD + "log_level: loud\n", "log_level (line 7): input should be 'debug', 'info', 'warning' or 'error'"),
        (GOOD + "server: {grpc: 50051}\n", "server.grpc (line 7): input should be a valid string"),
        (GOOD + "server: {grpc: nohost}\n", "server.grpc (line 7): expected host:port"),
        (GOOD + "history: {flush_s: 0}\n", "history.flush_s (line 7): input should be greater than 0, got 0"),
        (GOOD + "history: {flush_s: .nan}\n", "history.flush_s (line 7): input should be"),
        (GOOD + "policy: {reflex: {failing_rate: 2}}\n", "policy.reflex.failing_rate (line 7): "),
        (GOOD + "policy: {reflex: {eror_rate: 1}}\n", "policy.reflex.eror_rate (line 7): unknown field"),
        (GOOD + "policy: {failback: {steps: [0.5, 0.2]}}\n", "policy.failback.steps (line 7): "),
        (GOOD.replace("http://127", "ftp://127"), "providers[0].base_url (line 3): expected an http(s) URL"),
        (GOOD.replace("name: one", "name: One!"), "providers[0].name (line 2): "),
        (GOOD.replace("provider: one", "provider: two"), "models[0].endpoints[0].provider (line 6): "),
        (GOOD.replace("m}]", "m}, {provider: one, provider_model: n}]"), "models[0].endpoints[1].provider (line 6): "),
        (GOOD.replace("name: one", "name: one\n    api_key: sk-123"), "providers[0].api_key (line 3): expected an env"),
        (GOOD.replace("name: one", "name: one\n    api_key: ${NOT_SET_X}"), "variable NOT_SET_X is not set"),
        (GOOD + "data_dir: a\ndata_dir: b\n", "data_dir (line 8): given twice, expected once"),
    ],
)
def test_check_config_says_where_and_what_was_expected(
    routecast: Routecast, tmp_path: Path, text: str, said: str
) -> None:
    ended = _checked(routecast, tmp_path, text)
    assert ended.code == 2
    assert said in ended.errors
    assert "Traceback" not in ended.errors
    assert "sk-123" not in ended.errors


def test_check_config_lists_every_problem_at_once(routecast: Routecast, tmp_path: Path) -> None:
    ended = _checked(routecast, tmp_path, GOOD.replace("name: one", "name: ONE") + "log_level: loud\nextra: 1\n")
    assert "3 problems" in ended.errors
    for path in ("providers[0].name", "log_level", "extra"):
        assert f"  {path} (line" in ended.errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve",),
        ("serve", "--config", "nowhere.yaml"),
        ("check-config", "--config", "nowhere.yaml"),
        ("nonsense",),
        ("analytics", "providers", "--since", "yesterday"),
        ("analytics", "nonsense"),
        ("sql",),
    ],
)
def test_wrong_input_ends_with_2_and_words(routecast: Routecast, arguments: tuple[str, ...]) -> None:
    ended = routecast(*arguments)
    assert ended.code == 2
    assert ended.errors.strip()
    assert "Traceback" not in ended.errors


@pytest.mark.parametrize("arguments", [(), ("serve",), ("analytics",), ("analytics", "failovers"), ("sql",)])
def test_help_is_there_for_every_level(routecast: Routecast, arguments: tuple[str, ...]) -> None:
    ended = routecast(*arguments, "--help")
    assert ended.code == 0
    assert "Usage: routecast" in ended.out


@pytest.fixture
async def recorded(providers: ProviderFleet, tmp_path: Path) -> Path:
    """The data directory of a service that has lived through a failover."""
    async with in_process(providers, tmp_path) as service:
        for _ in range(3):
            await service.complete()
        await providers.inject(Fault(kind=FaultKind.REFUSE, provider="aurora"))
        for _ in range(5):
            await service.complete()
        return service.data_dir


async def test_analytics_answer_from_the_history_as_tables_and_as_json(routecast: Routecast, recorded: Path) -> None:
    data = ("--data", str(recorded))
    for question in ("failovers", "providers", "forecasts", "summary"):
        ended = routecast("analytics", question, *data)
        assert ended.code == 0, ended.errors
        assert question.capitalize()[:7] in ended.out or "Endpoints" in ended.out

    def rows(question: str) -> list[dict[str, Any]]:
        ended = routecast("analytics", question, *data, "--json")
        found: list[dict[str, Any]] = json.loads(ended.out)
        return found

    by_endpoint = {row["endpoint"]: row for row in rows("providers")}
    assert by_endpoint["aurora:openai/gpt-4"]["outcomes"] == {"ok": 3, "connect_error": 2}
    assert by_endpoint["borealis:openai/gpt-4"]["requests"] == 5
    (departure,) = rows("failovers")
    assert departure["endpoint"] == "aurora:openai/gpt-4"
    (totals,) = rows("summary")
    assert (totals["requests"], totals["failed"], totals["failed_over"]) == (8, 0, 2)
    assert rows("forecasts") == []


def _written(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


async def test_sql_reads_and_never_writes(routecast: Routecast, recorded: Path) -> None:
    data = ("--data", str(recorded))
    ended = routecast("sql", "SELECT provider, count(*) AS n FROM requests GROUP BY 1 ORDER BY 1", *data, "--json")
    assert json.loads(ended.out) == [{"provider": "aurora", "n": 3}, {"provider": "borealis", "n": 5}]
    ended = routecast("sql", "FROM requests SELECT provider LIMIT 1", *data)
    assert "provider" in ended.out

    before = _written(recorded)
    target = recorded / "history" / "stolen.csv"
    for text in (
        f"COPY requests TO '{target}'",
        "CREATE TABLE t AS SELECT 1",
        "SELECT 1; DROP VIEW requests",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT nonsense FROM requests",
        "not sql",
    ):
        ended = routecast("sql", text, *data)
        assert ended.code in (1, 2), text
        assert ended.errors.strip()
        assert "Traceback" not in ended.errors
        assert "root:" not in ended.out
    assert _written(recorded) == before


async def test_sql_ends_by_rows_and_by_time(routecast: Routecast, recorded: Path) -> None:
    data = ("--data", str(recorded))
    ended = routecast("sql", "FROM range(100)", *data, "--json", "--rows", "3")
    assert json.loads(ended.out) == [{"range": 0}, {"range": 1}, {"range": 2}]
    assert "first 3 rows" in ended.errors
    endless = "SELECT count(*) FROM range(100000000000) AS a, range(100000000000) AS b"
    ended = routecast("sql", endless, *data, "--timeout", "0.05s")
    assert ended.code == 1
    assert "0.05 s" in ended.errors
    for wrong in (("--rows", "0"), ("--timeout", "0s"), ("--timeout", "soon")):
        ended = routecast("sql", "SELECT 1", *data, *wrong)
        assert ended.code == 2
        assert wrong[0] in ended.errors


async def _process(*arguments: str) -> Ended:
    return Ended(*await run_to_end(sys.executable, "-m", "service.cli", *arguments))


async def test_the_process_says_the_same_without_starting_anything(tmp_path: Path) -> None:
    path = tmp_path / "routecast.yaml"
    path.write_text(GOOD + "log_level: loud\ndata_dir: never\n", encoding="utf-8")
    for command in ("check-config", "serve"):
        ended = await _process(command, "--config", str(path))
        assert ended.code == 2
        assert "log_level (line 7): " in ended.errors
        assert "Traceback" not in ended.errors
    assert not (tmp_path / "never").exists()


async def test_health_tells_a_serving_service_from_none(providers: ProviderFleet, tmp_path: Path) -> None:
    async with in_process(providers, tmp_path) as service:
        address = f"127.0.0.1:{service.ports.grpc}"
        assert (await _process("health", "--address", address, "--timeout-s", str(DEADLINE_S))).code == 0
    ended = await _process("health", "--address", address, "--timeout-s", "0.5")
    assert ended.code == 1
    assert "Traceback" not in ended.errors
