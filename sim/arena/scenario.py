"""A scenario of the arena: endpoints, load, and what goes wrong, as a YAML file says it.

The rule of this file: a `Scenario` that exists is sound. Whatever is wrong with a file is said before anything runs, as
a `ScenarioError` with the path of the field and what was expected there. Nothing random is drawn here.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import yaml

from sim.arena.incidents import SHARED, ArenaKind, Shape
from sim.arena.priors import AFTERSHOCK_CHANCE
from sim.decode import FieldError, ScenarioError, decode
from sim.scenario import StrictLoader
from sim.traces import TraceName

# More would not fit in memory.
_MOST_REQUESTS = 10_000_000


class Process(StrEnum):
    """How requests arrive: memoryless, or with the gaps of a real trace."""

    POISSON = "poisson"
    AZURE_CONV = "azure_conv"
    AZURE_CODE = "azure_code"
    MOONCAKE = "mooncake"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """The load. The process gives the gaps; the rate at each moment stretches them.

    Attributes:
        rate_per_s: mean rate without bursts.
        diurnal_amplitude: the rate swings by this share [0, 1) around its mean, once every `diurnal_period_s`.
        bursts_per_day: bursts begin at random this often, last `burst_s`, and multiply the rate by `burst_factor`.
    """

    rate_per_s: float
    process: Process = Process.POISSON
    diurnal_amplitude: float = 0.0
    diurnal_period_s: float = 86_400.0
    bursts_per_day: float = 0.0
    burst_factor: float = 4.0
    burst_s: float = 30.0

    def __post_init__(self) -> None:
        _require(self, "rate_per_s", self.rate_per_s > 0, "> 0")
        _require(self, "diurnal_amplitude", 0 <= self.diurnal_amplitude < 1, "in [0, 1)")
        _require(self, "diurnal_period_s", self.diurnal_period_s > 0, "> 0 seconds")
        _require(self, "bursts_per_day", 0 <= self.bursts_per_day <= 10_000, "0..10000")
        _require(self, "burst_factor", 1 <= self.burst_factor <= 100, "1..100")
        _require(self, "burst_s", self.burst_s > 0, "> 0 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint when nothing is wrong; the first in a scenario is the preferred one.

    Attributes:
        ttft_ms, ttft_sigma: time to first token is log-normal: its median and the sigma of its logarithm.
        tokens_per_s: output speed after the first token.
        error_rate, limited_rate: share of requests that get 5xx and 429 on a good day, [0, 0.1).
        usd_per_mtok: price per million tokens, in and out alike.
    """

    id: str
    provider: str
    region: str
    zone: str = "a"
    ttft_ms: float
    ttft_sigma: float = 0.3
    tokens_per_s: float = 60.0
    error_rate: float = 0.002
    limited_rate: float = 0.001
    usd_per_mtok: float

    def __post_init__(self) -> None:
        for name in ("id", "provider", "region", "zone"):
            _require(self, name, bool(getattr(self, name)), "a name")
        _require(self, "ttft_ms", self.ttft_ms > 0, "> 0 ms")
        _require(self, "ttft_sigma", 0 <= self.ttft_sigma <= 3, "in [0, 3]")
        _require(self, "tokens_per_s", self.tokens_per_s > 0, "> 0")
        _require(self, "error_rate", 0 <= self.error_rate < 0.1, "in [0, 0.1)")
        _require(self, "limited_rate", 0 <= self.limited_rate < 0.1, "in [0, 0.1)")
        _require(self, "usd_per_mtok", self.usd_per_mtok >= 0, ">= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target(Shape):
    """Whom an incident strikes: one endpoint, or every endpoint of a provider, of a region, or of both."""

    kind: ArenaKind
    endpoint: str | None = None
    provider: str | None = None
    region: str | None = None

    def struck(self, endpoints: tuple[Endpoint, ...]) -> tuple[int, ...]:
        """The indices of the endpoints it names."""
        return tuple(
            index
            for index, e in enumerate(endpoints)
            if self.endpoint in (None, e.id) and self.provider in (None, e.provider) and self.region in (None, e.region)
        )

    @property
    def named(self) -> bool:
        """Does it name anything?"""
        return (self.endpoint, self.provider, self.region) != (None, None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted(Target):
    """An incident that begins at `at_s`."""

    at_s: float

    def __post_init__(self) -> None:
        _require(self, "at_s", self.at_s >= 0, ">= 0 seconds")
        self.complete(self.kind)
        if not self.named:
            raise FieldError("", "expected a target: endpoint, provider or region")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurring(Target):
    """Incidents that begin at random, `per_day` on average. Without a target each strikes an endpoint at random (a
    regional one a region, a correlated one a provider).

    Attributes:
        compression: the status-page durations and gaps of `sim.arena.priors` are divided by this. A duration `hold_s`
            that is given is used as the median instead.
        aftershock_chance: that the same trouble comes again soon.
        follows_load: begin in proportion to the load instead of evenly.
    """

    per_day: float
    compression: float = 60.0
    aftershock_chance: float = AFTERSHOCK_CHANCE
    follows_load: bool = False

    def __post_init__(self) -> None:
        _require(self, "per_day", 0 < self.per_day <= 10_000, "> 0 and at most 10000")
        _require(self, "compression", self.compression > 0, "> 0")
        _require(self, "aftershock_chance", 0 <= self.aftershock_chance < 1, "in [0, 1)")
        self.complete(self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario.

    Attributes:
        duration_s: requests arrive during this time.
        deadline_s: how long a caller waits for the whole answer before leaving.
        sizes: the trace whose token counts the requests have.
        sessions: number of different sessions.
    """

    name: str
    description: str
    duration_s: int
    arrivals: Arrivals
    endpoints: tuple[Endpoint, ...]
    sizes: TraceName = TraceName.AZURE_CONV
    deadline_s: float = 60.0
    sessions: int = 500
    incidents: tuple[Scripted, ...] = ()
    recurring: tuple[Recurring, ...] = ()

    def __post_init__(self) -> None:
        _require(self, "name", bool(self.name), "a name")
        _require(self, "duration_s", 60 <= self.duration_s <= 30 * 86_400, "60..2592000 whole seconds")
        _require(self, "deadline_s", 0 < self.deadline_s <= 86_400, "> 0 seconds and at most a day")
        _require(self, "sessions", 0 < self.sessions <= 10**9, "> 0 and at most 10**9")
        if self.arrivals.rate_per_s * self.duration_s > _MOST_REQUESTS:
            raise FieldError(
                "arrivals.rate_per_s", f"expected at most {_MOST_REQUESTS:g} requests in {self.duration_s} s"
            )
        ids = [endpoint.id for endpoint in self.endpoints]
        if len(ids) < 2:
            raise FieldError("endpoints", f"expected at least two, got {len(ids)}")
        for index, name in enumerate(ids):
            if name in ids[:index]:
                raise FieldError(f"endpoints[{index}].id", f"repeats endpoints[{ids.index(name)}].id ({name!r})")
        for index, incident in enumerate(self.incidents):
            self._check_target(incident, f"incidents[{index}]")
            if incident.at_s >= self.duration_s:
                raise FieldError(f"incidents[{index}].at_s", f"expected a start before the end at {self.duration_s} s")
        for index, recurring in enumerate(self.recurring):
            self._check_target(recurring, f"recurring[{index}]")

    def _check_target(self, target: Target, path: str) -> None:
        for name in ("endpoint", "provider", "region"):
            known = {getattr(e, "id" if name == "endpoint" else name) for e in self.endpoints}
            value = getattr(target, name)
            if value is not None and value not in known:
                raise FieldError(f"{path}.{name}", f"expected one of {', '.join(sorted(known))}, got {value!r}")
        if target.kind in SHARED and target.endpoint is not None:
            raise FieldError(f"{path}.endpoint", f"{target.kind} strikes a provider or a region, not one endpoint")
        if not target.struck(self.endpoints):
            raise FieldError(path, "names no endpoint: nothing is at that provider, region and id")


def load_scenario(path: Path) -> Scenario:
    """Read a scenario from a YAML file.

    Raises:
        ScenarioError: the file cannot be read, is not YAML, or is not a sound scenario. The message begins with the
            file's name.
    """
    try:
        return parse_scenario(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(str(path), f"cannot be read: {error}") from error
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error.path}".removesuffix(": "), error.problem) from error


def parse_scenario(text: str) -> Scenario:
    """Read a scenario from YAML text; raises ScenarioError as `load_scenario` does, without a file's name."""
    try:
        data = yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a SafeLoader that also refuses repeated keys
    except yaml.YAMLError as error:
        raise ScenarioError("", f"expected YAML: {error}") from error
    return decode(Scenario, data)


def load_scenarios(directory: Path) -> tuple[Scenario, ...]:
    """Read every `*.yaml` of a directory, by file name.

    Raises:
        ScenarioError: there is none, one is unsound, or two have the same name.
    """
    paths = sorted(directory.glob("*.yaml"))
    if not paths:
        raise ScenarioError(str(directory), "expected a directory with at least one .yaml scenario")
    scenarios = tuple(load_scenario(path) for path in paths)
    names = [scenario.name for scenario in scenarios]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ScenarioError(f"{paths[index]}: name", f"repeats the name of {paths[names.index(name)].name}")
    return scenarios


def _require(owner: object, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise FieldError(name, f"expected {expected}, got {getattr(owner, name)!r}")
