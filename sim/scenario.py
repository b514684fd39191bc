"""A scenario: which simulated providers there are, and what befalls them when.

The rule of this file: a `Scenario` that exists is sound. Whatever is wrong with a file is said before anything starts,
as a `ScenarioError` with the path of the field and what was expected there.
"""

import dataclasses
import math
import re
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from sim.decode import FieldError, ScenarioError, decode
from sim.faults import Fault

__all__ = [
    "Model",
    "ModelKind",
    "Provider",
    "Scenario",
    "ScenarioError",
    "WireFormat",
    "load_scenario",
    "parse_scenario",
]

_ROUNDING_S = 1e-6  # scaled times carry rounding errors; neighbours must not be taken for overlapping
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]*")


class ModelKind(StrEnum):
    """What a model answers."""

    CHAT = "chat"
    EMBEDDINGS = "embeddings"


class WireFormat(StrEnum):
    """What a provider speaks."""

    OPENAI = "openai"
    AZURE = "azure"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model of a provider: `id` is the canonical name, `provider_model_id` the name on this provider's wire.

    `context_window` is in tokens, prices are US dollars per million tokens, `dimensions` the length of an embedding.
    """

    id: str
    provider_model_id: str
    kind: ModelKind = ModelKind.CHAT
    context_window: int = 128_000
    input_per_million_usd: float = 0.0
    output_per_million_usd: float = 0.0
    dimensions: int = 1536

    def __post_init__(self) -> None:
        _require(self, "id", bool(self.id), "a name")
        _require(self, "provider_model_id", bool(self.provider_model_id), "a name")
        for name in ("context_window", "dimensions"):
            _require(self, name, getattr(self, name) > 0, "> 0")
        for name in ("input_per_million_usd", "output_per_million_usd"):
            _require(self, name, getattr(self, name) >= 0, ">= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A simulated provider as it behaves when nothing is wrong.

    Attributes:
        port: where it listens on 127.0.0.1; 0 takes a free port.
        wire: the format it speaks.
        api_key: if given, requests need it, in the header of the wire format.
        ttft_ms, ttft_sigma: time to first token is log-normal: its median and the sigma of its logarithm.
        tokens_per_s: output speed after the first token.
        baseline_error_rate: share of requests that get 500 on a good day, [0, 1).
        capacity, queue: requests served at once (None: no bound) and requests that may wait for a place, in order;
            beyond them 503. Latency then rises with concurrency as it does in a real server.
        requests_per_min: the announced and enforced rate limit.
    """

    name: str
    region: str
    zone: str
    models: tuple[Model, ...]
    ttft_ms: float
    tokens_per_s: float
    ttft_sigma: float = 0.25
    baseline_error_rate: float = 0.0
    capacity: int | None = None
    queue: int = 256
    requests_per_min: int = 600_000
    port: int = 0
    api_key: str | None = None
    wire: WireFormat = WireFormat.OPENAI

    def __post_init__(self) -> None:
        for name in ("name", "region", "zone"):
            _require(self, name, bool(_SLUG.fullmatch(getattr(self, name))), "lower-case letters, digits and hyphens")
        _require(self, "ttft_ms", self.ttft_ms > 0, "> 0 ms")
        _require(self, "tokens_per_s", self.tokens_per_s > 0, "> 0")
        _require(self, "ttft_sigma", 0 <= self.ttft_sigma <= 3, "in [0, 3]")
        _require(self, "baseline_error_rate", 0 <= self.baseline_error_rate < 1, "in [0, 1)")
        _require(self, "capacity", self.capacity is None or self.capacity > 0, "> 0")
        _require(self, "queue", self.queue >= 0, ">= 0")
        _require(self, "requests_per_min", self.requests_per_min > 0, "> 0")
        _require(self, "port", 0 <= self.port <= 65535, "in 0..65535")
        _require(self, "api_key", self.api_key != "", "a key, or leave it out")
        _require_some(self.models, "models")
        _require_distinct("models", "id", [model.id for model in self.models])
        _require_distinct("models", "provider_model_id", [model.provider_model_id for model in self.models])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Providers and the faults they meet. `seed` drives every random draw; `duration_s` is the story's length."""

    name: str
    seed: int
    duration_s: float
    providers: tuple[Provider, ...]
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        _require(self, "duration_s", self.duration_s > 0, "> 0 seconds")
        _require_some(self.providers, "providers")
        _require_distinct("providers", "name", [provider.name for provider in self.providers])
        ports = [provider.port or f"free{index}" for index, provider in enumerate(self.providers)]
        _require_distinct("providers", "port", ports)
        for index, fault in enumerate(self.faults):
            self._check_fault(fault, f"faults[{index}]")
        for (first, one), (second, other) in combinations(enumerate(self.faults), 2):
            if one.kind is other.kind and self.struck(one) & self.struck(other) and _overlap(one, other):
                raise FieldError(f"faults[{second}].at_s", f"overlaps faults[{first}], a {one.kind} on the same target")

    def _check_fault(self, fault: Fault, path: str) -> None:
        names = [provider.name for provider in self.providers]
        regions = sorted({provider.region for provider in self.providers})
        if fault.provider is not None and fault.provider not in names:
            raise FieldError(f"{path}.provider", f"expected one of {', '.join(names)}, got {fault.provider!r}")
        if fault.region is not None and fault.region not in regions:
            raise FieldError(f"{path}.region", f"expected one of {', '.join(regions)}, got {fault.region!r}")
        if not self.struck(fault):
            raise FieldError(f"{path}.region", f"{fault.provider} is not in region {fault.region}")
        if fault.at_s >= self.duration_s:
            raise FieldError(f"{path}.at_s", f"expected a start before the end at {self.duration_s:g} s")
        if self.duration_s + _ROUNDING_S < fault.end_s < math.inf:
            raise FieldError(f"{path}.for_s", f"expected an end by {self.duration_s:g} s, got {fault.end_s:g} s")

    def struck(self, fault: Fault) -> frozenset[str]:
        """The names of the providers that `fault` concerns."""
        return frozenset(p.name for p in self.providers if fault.targets(p.name, p.region))

    def scaled(self, factor: float) -> "Scenario":
        """The same story with every duration times `factor` (0.25 tells it four times as fast).

        Providers stay as they are: their latency is theirs, not the story's.

        Raises:
            FieldError: `factor` is not above zero.
        """
        if not factor > 0:
            raise FieldError("factor", f"expected > 0, got {factor:g}")
        faults = tuple(fault.scaled(factor) for fault in self.faults)
        return dataclasses.replace(self, duration_s=self.duration_s * factor, faults=faults)


def load_scenario(path: Path) -> Scenario:
    """Read a scenario from a YAML file.

    Raises:
        ScenarioError: the file cannot be read, is not YAML, or is not a sound scenario.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError("", f"cannot read {path}: {error}") from error
    return parse_scenario(text)


def parse_scenario(text: str) -> Scenario:
    """Read a scenario from YAML text; raises ScenarioError as `load_scenario` does."""
    try:
        data = yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a SafeLoader that also refuses repeated keys
    except yaml.YAMLError as error:
        raise ScenarioError("", f"expected YAML: {error}") from error
    return decode(Scenario, data)


class StrictLoader(yaml.SafeLoader):
    """YAML's safe subset, in which a repeated key is an error instead of a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"repeated key {key.value!r}", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _require(owner: object, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise FieldError(name, f"expected {expected}, got {getattr(owner, name)!r}")


def _require_some(items: tuple[object, ...], name: str) -> None:
    if not items:
        raise FieldError(name, "expected at least one")


def _require_distinct(items: str, name: str, values: list[Any]) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            first = values.index(value)
            raise FieldError(f"{items}[{index}].{name}", f"repeats {items}[{first}].{name} ({value!r})")


def _overlap(one: Fault, other: Fault) -> bool:
    return one.at_s < other.end_s - _ROUNDING_S and other.at_s < one.end_s - _ROUNDING_S
