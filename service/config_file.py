"""From a YAML file to a `Config`: environment references, duplicate keys, and errors that name path, line and
expectation.

The only module that reads the environment.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from routing.errors import PolicyError
from service.config import Config, ReferencesError
from service.tenancy.keys import is_hash

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_ENCRYPTION_KEYS, _TENANT_KEYS = "encryption_keys", "api_keys"
# Where secrets stand, which may be given by reference alone.
_SECRETS = (
    ("providers", "*", "api_key"),
    ("state", _ENCRYPTION_KEYS, "*"),
    ("tenants", "*", _TENANT_KEYS, "*"),
    ("tenants", "*", "credentials", "*"),
)
_SECRET_FIELDS = {part for place in _SECRETS for part in place[1:]} - {"*"}
_Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, and what was expected."""

    path: str
    line: int | None
    message: str

    def __str__(self) -> str:
        where = f" (line {self.line})" if self.line else ""
        return f"{self.path or 'file'}{where}: {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used; carries every problem found."""

    def __init__(self, source: Path, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in problems)]))


def load(source: Path, environment: Mapping[str, str] | None = None) -> Config:
    """Read, resolve and validate a configuration file.

    Relative `data_dir`s are relative to the file. Raises ConfigError with all problems found.
    """
    environment = os.environ if environment is None else environment
    try:
        text = source.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(source, [Problem("", None, f"cannot be read: {error}")]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        message = f"not valid YAML: {getattr(error, 'problem', error)}"
        raise ConfigError(source, [Problem("", mark.line + 1 if mark else None, message)]) from error
    if not isinstance(tree, dict) or node is None:
        expected = "expected a mapping with `providers` and `models`"
        raise ConfigError(source, [Problem("", None, expected)])

    lines = dict(_lines(node, ()))
    found = [*_duplicate_keys(node, ()), *_literal_keys(tree)]
    resolved = _resolve(tree, (), environment, found)
    try:
        config = Config.model_validate(resolved)
    except ValidationError as error:
        reported = {path for path, _ in found}
        found += [(path, text) for path, text in _explain(error) if path not in reported]
    if not found:
        return config.model_copy(update={"data_dir": source.parent / config.data_dir})
    raise ConfigError(source, [Problem(_dotted(path), _nearest_line(lines, path), text) for path, text in found])


def _lines(node: yaml.Node, path: _Path) -> Iterator[tuple[_Path, int]]:
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (
                (p, key.start_mark.line + 1 if p == (*path, key.value) else n)
                for p, n in _lines(value, (*path, key.value))
            )
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*path, index))


def _nearest_line(lines: Mapping[_Path, int], path: _Path) -> int | None:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path) if path else None


def _duplicate_keys(node: yaml.Node, path: _Path) -> Iterator[tuple[_Path, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield (*path, key.value), "given twice, expected once"
            seen.add(key.value)
            yield from _duplicate_keys(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _duplicate_keys(value, (*path, index))


def _literal_keys(tree: dict[str, Any]) -> Iterator[tuple[_Path, str]]:
    for place in _SECRETS:
        for path, key in _at(tree, place, ()):
            is_reference = isinstance(key, str) and _REFERENCE.fullmatch(key)
            if key is not None and not is_reference and not (_TENANT_KEYS in path and is_hash(str(key))):
                or_hash = ", or a hash as `routecast tenant-key` prints it" if _TENANT_KEYS in path else ""
                yield path, f"expected an environment reference such as ${{OPENAI_API_KEY}}{or_hash}, not a key"


def _at(tree: Any, place: tuple[str, ...], path: _Path) -> Iterator[tuple[_Path, Any]]:
    """Yield what stands at a place; "*" is every item of a list and every value of a mapping."""
    if not place:
        yield path, tree
    elif isinstance(tree, dict):
        for key in tree if place[0] == "*" else tree.keys() & {place[0]}:
            yield from _at(tree[key], place[1:], (*path, key))
    elif isinstance(tree, list) and place[0] == "*":
        for index, item in enumerate(tree):
            yield from _at(item, place[1:], (*path, index))


def _resolve(value: Any, path: _Path, environment: Mapping[str, str], found: list[tuple[_Path, str]]) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(item, (*path, key), environment, found) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, (*path, index), environment, found) for index, item in enumerate(value)]
    if isinstance(value, str):
        found += [
            (path, f"environment variable {name} is not set")
            for name in _REFERENCE.findall(value)
            if name not in environment
        ]
        return _REFERENCE.sub(lambda match: environment.get(match[1], ""), value)
    return value


def _explain(error: ValidationError) -> Iterator[tuple[_Path, str]]:
    for detail in error.errors(include_url=False):
        path, cause = detail["loc"], detail.get("ctx", {}).get("error")
        if isinstance(cause, ReferencesError):
            yield from cause.problems
        elif isinstance(cause, PolicyError):
            yield (*path, cause.field), str(cause)
        elif detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            yield path, f"unknown field, expected one of {', '.join(_known_fields(path[:-1]))}"
        elif detail["type"] == "missing":
            yield path, "missing, expected a value"
        else:
            text = detail["msg"].removeprefix("Value error, ")
            is_secret = not _SECRET_FIELDS.isdisjoint(path)
            given = "" if is_secret or isinstance(detail["input"], dict | list) else f", got {detail['input']!r}"
            yield path, f"{text[0].lower()}{text[1:]}{given}"


def _known_fields(path: _Path) -> list[str]:
    """Return the fields of the section at `path`, from the schema that editors use."""
    schema = Config.model_json_schema()
    section: dict[str, Any] = schema
    for part in path:
        section = section["items"] if isinstance(part, int) else section["properties"][part]
        if "$ref" in section:
            section = schema["$defs"][section["$ref"].rpartition("/")[2]]
    return sorted(section["properties"])


def _dotted(path: _Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
