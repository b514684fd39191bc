"""The image's recipe without an engine: the build stage of the Dockerfile is carried out in a temporary folder, and
what it installs is asked to do what the image promises.

The rule of this file: the Dockerfile is read, never repeated. Paths below /build, /opt and /etc move into the folder;
everything else is run as it is written there. The package index is needed, as by `make setup`.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.config import Server

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
CONFIG = """
server: {grpc: "127.0.0.1:0", http: "127.0.0.1:0", drain_s: 2}
data_dir: ../../data
providers: [{name: nobody, base_url: "http://127.0.0.1:9/v1"}]
models: [{id: chat, endpoints: [{provider: nobody, provider_model: chat}]}]
"""


@dataclass(slots=True)
class Stage:
    """One stage: its base image, and its instructions in order."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def arguments(self, instruction: str) -> list[str]:
        """What every such instruction says."""
        return [text for name, text in self.steps if name == instruction]

    def command(self, instruction: str) -> list[str]:
        """The one such instruction's command, which is in JSON form."""
        (text,) = self.arguments(instruction)
        words = json.loads(text[text.index("[") :])
        assert isinstance(words, list)
        return words


def _stages() -> list[Stage]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[Stage] = []
    for line in filter(str.strip, text.splitlines()):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name))
        elif stages:
            stages[-1].steps.append((instruction, " ".join(rest.split())))
    return stages


BUILD, FINAL = _stages()


def _context() -> list[Path]:
    """Every file of the checkout that .dockerignore lets through; the last pattern that matches decides."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    tops = [path for path in ROOT.iterdir() if not _ignored(path.relative_to(ROOT), patterns)]
    files = [file for top in tops for file in ([top] if top.is_file() else top.rglob("*")) if file.is_file()]
    return [relative for file in files if not _ignored(relative := file.relative_to(ROOT), patterns)]


def _ignored(path: Path, patterns: list[str]) -> bool:
    verdict = False
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        expression = re.escape(bare).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{expression}(?:/.*)?", path.as_posix()):
            verdict = not pattern.startswith("!")
    return verdict


@dataclass(frozen=True, slots=True)
class Image:
    """What the build stage made, below `root`."""

    root: Path

    def moved(self, text: str) -> str:
        """Return a command with its absolute paths moved below the root."""
        return re.sub(r"(?<![\w.])/(build|opt|etc)(?=/|\b)", rf"{self.root}/\1", text)

    def mount(self, path: str, text: str) -> None:
        """Put a file where the image expects it."""
        target = Path(self.moved(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def command(self, *words: str) -> list[str]:
        """Return a command of the final stage, looked up where its PATH finds it first."""
        return [str(self.root / "opt/routecast/bin" / words[0]), *map(self.moved, words[1:])]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the final stage would: nothing of the checkout, nothing of this environment."""
        return subprocess.run(
            self.command(*words), cwd=self.root, env={"COLUMNS": "200"}, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The build stage, carried out with the Python that runs the tests, whose version may differ from the image's."""
    made = Image(tmp_path_factory.mktemp("image"))
    work = made.root
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name in ("VIRTUAL_ENV", "PYTHONPATH"):
        environment.pop(name, None)
    for instruction, text in BUILD.steps:
        match instruction:
            case "WORKDIR":
                work = Path(made.moved(text))
                work.mkdir(parents=True, exist_ok=True)
            case "COPY":
                source, target = text.split()
                for file in _context():
                    if source == "." or file.is_relative_to(source):
                        to = work / target / (file if source == "." else file.relative_to(source))
                        to.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(ROOT / file, to)
            case "RUN":
                ran = subprocess.run(
                    ["sh", "-c", made.moved(text)],
                    cwd=work,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert ran.returncode == 0, f"{text}\n{ran.stdout}{ran.stderr}"
            case _:
                pytest.fail(f"{instruction}: expected COPY, RUN or WORKDIR in the build stage")
    return made


@asynccontextmanager
async def _serving(image: Image) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """The final stage's command with the file mounted where it expects it."""
    words = [*FINAL.command("ENTRYPOINT"), *FINAL.command("CMD")]
    image.mount(words[-1], CONFIG)
    process = await asyncio.create_subprocess_exec(
        *image.command(*words), cwd=image.root, env={"COLUMNS": "200"}, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        yield process, process.stderr
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _said(pipe: asyncio.StreamReader, expression: str) -> re.Match[str]:
    lines: list[str] = []
    async with asyncio.timeout(DEADLINE_S):
        while line := (await pipe.readline()).decode():
            lines.append(line)
            if found := re.search(expression, line):
                return found
    pytest.fail(f"{expression!r} was never said: {''.join(lines)}")


def test_the_environment_holds_what_the_lock_names_and_nothing_else(image: Image) -> None:
    script = "import importlib.metadata as m; print('\\n'.join(d.metadata['Name'] for d in m.distributions()))"
    listed = image.run("python", "-I", "-c", script)
    installed = {re.sub(r"[-_.]+", "-", name).lower() for name in listed.stdout.split()}
    locked = re.findall(r"^([a-z0-9-]+)==", (ROOT / "locks/runtime.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert installed - {"routecast"} <= set(locked)
    assert {"routecast", "grpcio", "duckdb", "scikit-learn"} <= installed


def test_the_packages_come_from_the_wheel(image: Image) -> None:
    script = (
        "import analytics, routecast.v1, routing, scoring, service, sim; print(service.__file__, routecast.v1.__file__)"
    )
    ran = image.run("python", "-I", "-c", script)
    assert ran.returncode == 0, ran.stderr
    assert all(path.startswith(str(image.root / "opt/routecast/lib")) for path in ran.stdout.split())


def test_the_command_helps_from_the_wheel(image: Image) -> None:
    ran = image.run("routecast", "--help")
    assert ran.returncode == 0, ran.stderr
    assert {"serve", "check-config", "health", "analytics", "sql"} <= set(re.findall(r"[a-z-]+", ran.stdout))


def test_the_image_can_seal_what_it_keeps(image: Image) -> None:
    script = (
        "from service.store.seal import Seal; s = Seal([bytes(32)]); kept = s.seal(b'said', 'row'); "
        "assert b'said' not in kept; print(s.open(kept, 'row').decode())"
    )
    ran = image.run("python", "-I", "-c", script)
    assert (ran.returncode, ran.stdout.strip()) == (0, "said"), ran.stderr


async def test_the_image_serves_forecasts_answers_its_health_check_and_stops(image: Image) -> None:
    """Issue 2, item 10: the health check is a gRPC call; the prior and the SQL files are read from the wheel."""
    address = FINAL.command("HEALTHCHECK")[-1]
    async with _serving(image) as (process, errors):
        port = (await _said(errors, r"serving gRPC on 127\.0\.0\.1:(\d+)"))[1]
        here = f"{address.rpartition(':')[0]}:{port}"
        check = [*FINAL.command("HEALTHCHECK")[:-1], here]
        healthy = await asyncio.to_thread(image.run, *check)
        assert (healthy.returncode, healthy.stdout.split()) == (0, [f"{here}:", "SERVING"]), healthy.stderr
        await _said(errors, r"ready with forecaster prior-")
        process.send_signal(signal.Signals[FINAL.arguments("STOPSIGNAL")[0]])
        async with asyncio.timeout(DEADLINE_S):
            assert await process.wait() == 0
    gone = await asyncio.to_thread(image.run, *check)
    assert gone.returncode == 1
    report = await asyncio.to_thread(image.run, "routecast", "analytics", "summary", "--data", "data")
    assert report.returncode == 0, report.stderr
    assert "requests" in report.stdout


def test_the_final_stage_is_small_and_not_root() -> None:
    user, _, group = FINAL.arguments("USER")[0].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert BUILD.base == FINAL.base, "a virtual environment needs the interpreter it was made with"
    assert FINAL.arguments("COPY") == [f"--from={BUILD.name} /opt/routecast /opt/routecast"]
    tools = {"pip", "uv", "apt", "apt-get", "gcc", "make", "hatchling"}
    assert tools.isdisjoint(word for text in FINAL.arguments("RUN") for word in shlex.split(text))


def test_the_final_stage_says_where_it_listens_and_what_it_keeps() -> None:
    listens = [address.rpartition(":")[2] for address in (Server().grpc, Server().http)]
    assert FINAL.arguments("EXPOSE")[0].split() == listens
    assert FINAL.command("HEALTHCHECK")[-1] == Server().grpc
    (kept,) = FINAL.arguments("VOLUME")
    assert any(
        f"--owner={FINAL.arguments('USER')[0].partition(':')[0]}" in text and kept in text
        for text in FINAL.arguments("RUN")
    )


def test_the_build_context_holds_no_secret_history_or_environment() -> None:
    files = _context()
    packages = {"routing", "scoring", "analytics", "service", "sim"}
    assert {path.parts[0] for path in files} == {"LICENSE", "README.md", "pyproject.toml", "locks", "protos", *packages}
    assert not any("__pycache__" in path.parts for path in files)
