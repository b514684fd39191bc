"""The documents tell the truth: links lead somewhere, commands exist, configurations load, tables match the code."""

import dataclasses
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from cyclopts import CycloptsError
from pydantic import BaseModel

from analytics.writer import WriterStats
from routing.engine import Engine
from service.cli import app
from service.config import Config
from service.config_file import load
from service.telemetry import Metrics
from tests.documents import ROOT, Document, document, documents

DOCUMENTS = documents()
MINIMAL = {
    "providers": [{"name": "p", "base_url": "http://127.0.0.1:1/v1"}],
    "models": [{"id": "m", "endpoints": [{"provider": "p", "provider_model": "m"}]}],
}
EACH = pytest.mark.parametrize("doc", DOCUMENTS, ids=lambda doc: doc.name)


def test_the_documents_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {doc.name for doc in DOCUMENTS}
    assert any(doc.links() for doc in DOCUMENTS)


@EACH
def test_links_resolve(doc: Document) -> None:
    for link in doc.links():
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (doc.path.parent / path).resolve() if path else doc.path
        assert target.exists(), f"{doc.name}: {link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{doc.name}: {link} leaves the repository"
        if anchor:
            assert anchor in document(target.relative_to(ROOT).as_posix()).anchors(), (
                f"{doc.name}: no heading for {link}"
            )


@EACH
def test_files_named_in_prose_exist(doc: Document) -> None:
    named = re.findall(r"`((?:routing|scoring|analytics|service|sim|tests|docs|examples|locks)/[\w./-]+)`", doc.prose)
    assert [name for name in named if not (ROOT / name).exists()] == []


@EACH
def test_make_targets_exist(doc: Document) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = re.findall(r"`make ([a-z]+)", doc.text) + re.findall(
        r"^make ([a-z]+)", "\n".join(doc.commands()), re.MULTILINE
    )
    assert set(shown) <= targets


@EACH
def test_routecast_commands_are_understood(doc: Document) -> None:
    spans = [span for span in re.findall(r"`(routecast [a-z][^`…]*)`", doc.prose) if "\n" not in span]
    blocks = [command for command in doc.commands() if re.match(r"(\.venv/bin/)?routecast ", command)]
    for line in blocks:
        _understood(doc, shlex.split(line)[1:])
    for span in spans:
        # In running text a command may stand without its required arguments, but it has to exist.
        words = shlex.split(span)[1:]
        depth = 2 if words[0] == "analytics" else 1
        _understood(doc, [*words[:depth], "--help"])


def _understood(doc: Document, words: list[str]) -> None:
    try:
        app.parse_args(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        pytest.fail(f"{doc.name}: routecast {shlex.join(words)}: {error}")


@EACH
def test_configurations_load(doc: Document, tmp_path: Path) -> None:
    for block in doc.blocks("yaml"):
        tree = yaml.safe_load(block)
        if tree is None:
            assert "yaml-language-server" in block
            continue
        file = tmp_path / "routecast.yaml"
        whole = "providers" in tree
        file.write_text(block if whole else yaml.safe_dump(MINIMAL | tree), encoding="utf-8")
        load(file, dict.fromkeys(re.findall(r"\$\{(\w+)\}", block), "a-key"))


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of the configuration with its default; Ellipsis for a required one."""
    for name, field in section.model_fields.items():
        kind, path = field.annotation, f"{prefix}{name}"
        entry = next((arg for arg in get_args(kind) if isinstance(arg, type) and issubclass(arg, BaseModel)), None)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{path}.")
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from ((f"{path}.{leaf.name}", leaf.default) for leaf in dataclasses.fields(kind))
        else:
            if prefix or entry is None:
                yield path, ... if field.is_required() else field.get_default(call_default_factory=True)
            if entry is not None:
                yield from _fields(entry, f"{path}[].")


def _shown(value: Any) -> str:
    """A default as the guide writes it."""
    if value is ...:
        return "required"
    if value is None or value == {}:
        return "none"
    if isinstance(value, frozenset):
        order = ["chat", "streaming", "tools"]
        return f"`[{', '.join(sorted((each.value for each in value), key=order.index))}]`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_the_configuration_guide_shows_every_field_and_its_default() -> None:
    rows = re.findall(r"^\| `([\w.\[\]]+)` \| ([^|]+) \|", document("docs/guides/configuration.md").text, re.MULTILINE)
    assert dict(rows) == {path: _shown(value) for path, value in _fields(Config)}
    assert len(rows) == len(dict(rows))


def test_the_operating_guide_shows_every_metric(tmp_path: Path) -> None:
    file = tmp_path / "routecast.yaml"
    file.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    engine = Engine(load(file, {}).catalogue(), Config.model_validate(MINIMAL).policy.policy(), 0.0)
    exposed = Metrics(lambda: engine.snapshot, lambda: WriterStats(0, 0, 0, 0, "")).render().decode()
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", exposed, re.MULTILINE))
    shown = set(re.findall(r"^\| `(routecast_\w+)` \|", document("docs/guides/operating.md").text, re.MULTILINE))
    assert shown == {name for name in kinds if not name.endswith("_created")}


def test_every_runtime_dependency_has_its_line() -> None:
    lock = (ROOT / "locks/runtime.txt").read_text(encoding="utf-8")
    locked = dict(reversed(re.findall(r"^([a-z0-9-]+)==([\w.]+)", lock, re.MULTILINE)))  # a name's first line wins
    table = re.findall(r"^\| ([^|]+) \| ([\d.]+)", document("docs/decisions/dependencies.md").text, re.MULTILINE)
    shown = {name: version for names, version in table for name in names.split(", ")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = [re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]]
    assert shown == {name: locked[name] for name in direct}
