"""Strict decoding of plain data (YAML, JSON) into frozen dataclasses.

The rule of this file: nothing is guessed, coerced or dropped. Every refusal is a `ScenarioError` that names the path of
the bad field and says what was expected there. Dataclasses check their own ranges in `__post_init__` and raise
`FieldError`; decoding only adds where that happened.
"""

import difflib
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class FieldError(ValueError):
    """A dataclass refuses a value: `field` is the field's name (empty for the whole), `problem` what was expected."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return _told(self.field, self.problem)


class ScenarioError(ValueError):
    """Input that cannot be used: `path` like `faults[2].for_s` (empty for the whole), `problem` what was expected."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return _told(self.path, self.problem)


def _told(where: str, problem: str) -> str:
    return f"{where}: {problem}" if where else problem


def decode(cls: type[T], value: object, path: str = "") -> T:
    """Build the dataclass `cls` from a mapping, recursively.

    Understands str, bool, int, float (finite), StrEnum, `X | None`, `tuple[X, ...]` and dataclasses of these.

    Raises:
        ScenarioError: an unknown or missing key, a value of another type, or one that `cls` refuses.
    """
    if not isinstance(value, Mapping):
        raise ScenarioError(path, f"expected a mapping of {cls.__name__} fields, got {_shown(value)}")
    hints, known = _shape(cls)
    for key in value:
        if key not in known:
            raise ScenarioError(_join(path, str(key)), _unknown(str(key), known))
    arguments: dict[str, Any] = {}
    for name, field in known.items():
        if name in value:
            arguments[name] = _convert(hints[name], value[name], _join(path, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ScenarioError(_join(path, name), "is required")
    try:
        return cls(**arguments)
    except FieldError as error:
        raise ScenarioError(_join(path, error.field), error.problem) from error


def _shape(cls: type) -> tuple[dict[str, Any], dict[str, Field[Any]]]:
    if not is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a dataclass")
    return get_type_hints(cls), {field.name: field for field in fields(cls)}


def _convert(hint: Any, value: object, path: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (option for option in get_args(hint) if option is not type(None))
        return _convert(hint, value, path)
    if origin is tuple:
        return _convert_items(get_args(hint)[0], value, path)
    if is_dataclass(hint):
        return decode(hint, value, path)  # type: ignore[arg-type]  # hints are classes, never instances
    if issubclass(hint, StrEnum):
        return _convert_choice(hint, value, path)
    return _convert_scalar(hint, value, path)


def _convert_items(hint: Any, value: object, path: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ScenarioError(path, f"expected a list, got {_shown(value)}")
    return tuple(_convert(hint, item, f"{path}[{index}]") for index, item in enumerate(value))


def _convert_choice(hint: type[StrEnum], value: object, path: str) -> StrEnum:
    choices = [member.value for member in hint]
    if value not in choices:
        raise ScenarioError(path, f"expected one of {', '.join(choices)}, got {_shown(value)}")
    return hint(value)


def _convert_scalar(hint: type, value: object, path: str) -> object:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint in (str, bool, int) and type(value) is hint:
        return value
    expected = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number"}[hint]
    raise ScenarioError(path, f"expected {expected}, got {_shown(value)}")


def _unknown(key: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
    return f"unknown key, {hint}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
