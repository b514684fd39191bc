"""The configuration, as validated values. Everything a wrong file can say wrong is found here, before anything starts.

The field docstrings and limits below are also the JSON Schema that editors use (`routecast schema`).
"""

import base64
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic.dataclasses import dataclass as validated

from routing.model import Capability, Catalogue, Endpoint
from routing.policy import (
    AttemptPolicy,
    BudgetPolicy,
    DomainPolicy,
    FailbackPolicy,
    ForecastPolicy,
    HedgePolicy,
    Policy,
    ReflexPolicy,
)
from service.config_tenants import Operator, Overload, Tenant, tenant_problems
from service.config_types import STRICT, Address, ModelId, Price, Seconds, Section, Slug
from service.config_upstream import Provider, ProviderKind, Upstream
from service.store.seal import KEY_BYTES


def _encryption_key(value: SecretStr) -> SecretStr:
    try:
        size = len(base64.b64decode(value.get_secret_value(), validate=True))
    except ValueError:
        size = 0
    if size != KEY_BYTES:
        raise ValueError(f"expected {KEY_BYTES} bytes in base64, for example from `openssl rand -base64 {KEY_BYTES}`")
    return value


EncryptionKey = Annotated[SecretStr, AfterValidator(_encryption_key)]


class Server(Section):
    """Where the service listens."""

    grpc: Address = "127.0.0.1:50051"
    """Address of the gRPC server, host:port."""
    http: Address = "127.0.0.1:8088"
    """Address of the OpenAI-compatible HTTP edge, host:port."""
    metrics: Address | None = None
    """Address of `/metrics` and `/healthz` alone, host:port; without it, `/metrics` is on the HTTP edge's port."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    """Largest request and reply that is taken."""
    lame_duck_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """How long requests are still taken after SIGTERM while the health checks already fail, so that balancers
    notice.
    """
    drain_s: Seconds = 30.0
    """How long requests in flight may go on after that."""


class ModelEndpoint(Section):
    """A model at one provider."""

    provider: Slug
    """Name of an entry of `providers`."""
    provider_model: ModelId
    """The provider's own name for the model."""
    capabilities: frozenset[Capability] | None = None
    """What the model can do there, when it differs from the model's own list."""
    context_window_tokens: Annotated[int, Field(gt=0)] | None = None
    """Context window there; unknown when absent."""
    input_usd_per_mtok: Price = 0.0
    """Price of a million input tokens, USD."""
    output_usd_per_mtok: Price = 0.0
    """Price of a million output tokens, USD."""


class Model(Section):
    """A canonical model and where it is served, the primary first."""

    id: ModelId
    """The name callers use."""
    capabilities: frozenset[Capability] = frozenset({Capability.CHAT, Capability.STREAMING, Capability.TOOLS})
    """What the model can do."""
    endpoints: Annotated[list[ModelEndpoint], Field(min_length=1)]
    """Primary first, then the fallbacks in order."""


class Truncation(StrEnum):
    """What happens to a conversation that exceeds a context window."""

    REFUSE = "refuse"
    DROP_OLDEST = "drop_oldest"


class Sessions(Section):
    """Conversations kept on the server for callers who send a session id."""

    ttl_s: Seconds = 3600.0
    """A session unused for this long is forgotten."""
    max_sessions: Annotated[int, Field(ge=1)] = 10_000
    """The longest unused are forgotten beyond this many."""
    max_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Largest conversation, as JSON."""
    max_total_bytes: Annotated[int, Field(ge=1024)] = 1024**3
    """Disk for all conversations; the longest unused are forgotten beyond it."""
    cache_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    """Memory for conversations; the others are read from the disk when their next turn comes."""
    truncation: Truncation = Truncation.REFUSE
    """What happens when a conversation exceeds the context window of the endpoint that is to serve it, unless the
    request says otherwise: refuse, or drop_oldest (keep instructions and newest turns, and say so in the answer).
    """


class Idempotency(Section):
    """Requests with an idempotency key."""

    ttl_s: Seconds = 86400.0
    """How long a result is kept, and its key refuses other bodies."""
    max_result_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024 * 1024
    """Largest result that is kept; a duplicate of a larger one is refused."""
    max_total_bytes: Annotated[int, Field(ge=1024)] = 1024**3
    """Disk for all results, compressed; the oldest are forgotten beyond it, before their time."""


class Usage(Section):
    """The ledger: one entry per served request, in the history's stream `usage`."""

    acknowledge: Literal["stored", "at_once"] = "at_once"
    """Answer when the entry is durable, or at once: then the entries of a few milliseconds may be lost in a crash."""


class State(Section):
    """What survives a restart, besides the history: sessions, results under idempotency keys, usage on its way."""

    sync: Literal["full", "normal"] = "full"
    """Survive a loss of power (full), or only the death of the process (normal)."""
    encryption_keys: list[EncryptionKey] = Field(default_factory=list)
    """References to 32 bytes in base64 each, as ${NAME}. The first encrypts what callers and models said, all decrypt.
    Needs the extra `encryption`.
    """

    def raw_keys(self) -> list[bytes]:
        """Return the keys as bytes."""
        return [base64.b64decode(key.get_secret_value()) for key in self.encryption_keys]


class History(Section):
    """What is recorded, and where (below `data_dir`)."""

    flush_s: Seconds = 1.0
    """How often rows are made durable."""
    flush_rows: Annotated[int, Field(ge=1)] = 5000
    """Rows that force a flush earlier."""
    buffer_rows: Annotated[int, Field(ge=1)] = 200_000
    """Rows kept in memory while the disk refuses them; the oldest are dropped beyond it."""
    retention_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 90.0
    """Days of history that are kept; null keeps everything."""

    def retention_s(self) -> float | None:
        """Return the retention in seconds."""
        return None if self.retention_days is None else self.retention_days * 86400


class Scoring(Section):
    """The scoring process."""

    enabled: bool = True
    """Run it. Without it the reflex policy stands alone."""
    tick_s: Seconds = 1.0
    """Time between two forecasts."""
    scheduling: Literal["idle", "normal"] = "idle"
    """Scheduling class of the process; idle never takes processor time from requests."""
    explore: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.05
    """Share of alarms that move a tenth of the traffic only, so that it stays known how often alarms are right."""


class Tuning(Section):
    """How `routecast thresholds propose` learns from history."""

    mode: Literal["propose", "apply"] = "propose"
    """Whether a certified improvement waits for somebody to apply it, or is applied at once."""
    false_failovers_per_day: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Budget per provider-day; what the exact 95 % bound of a change has to meet."""
    needless_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """What one needlessly diverted request per thousand costs, in bad requests per thousand."""
    switch_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """What one switch a day costs, in bad requests per thousand."""
    changes_per_day: Annotated[int, Field(ge=1)] = 1
    """Most changes that are applied automatically in 24 hours; each is one step of one threshold."""


ReflexSection = validated(ReflexPolicy, config=STRICT)
FailbackSection = validated(FailbackPolicy, config=STRICT)
ForecastSection = validated(ForecastPolicy, config=STRICT)
AttemptSection = validated(AttemptPolicy, config=STRICT)
DomainSection = validated(DomainPolicy, config=STRICT)
BudgetSection = validated(BudgetPolicy, config=STRICT)
HedgeSection = validated(HedgePolicy, config=STRICT)


class Thresholds(Section):
    """The policy; every default is the shipped one."""

    reflex: ReflexSection = ReflexSection()  # type: ignore[valid-type]  # a class made by a call
    """When observations alone take traffic away."""
    failback: FailbackSection = FailbackSection()  # type: ignore[valid-type]  # the same
    """How traffic comes back."""
    forecast: ForecastSection = ForecastSection()  # type: ignore[valid-type]  # the same
    """When a forecast takes traffic away."""
    attempts: AttemptSection = AttemptSection()  # type: ignore[valid-type]  # the same
    """Limits on the attempts of one request."""
    domains: DomainSection = DomainSection()  # type: ignore[valid-type]  # the same
    """When endpoints that fail together are one event of what they share."""
    budget: BudgetSection = BudgetSection()  # type: ignore[valid-type]  # the same
    """What all requests of a model together may spend on trying again."""
    hedge: HedgeSection = HedgeSection()  # type: ignore[valid-type]  # the same
    """When a second attempt may start beside one that keeps its caller waiting."""

    def policy(self) -> Policy:
        """Return the core's policy."""
        return Policy(
            reflex=_core(ReflexPolicy, self.reflex),
            failback=_core(FailbackPolicy, self.failback),
            forecast=_core(ForecastPolicy, self.forecast),
            attempts=_core(AttemptPolicy, self.attempts),
            domains=_core(DomainPolicy, self.domains),
            budget=_core(BudgetPolicy, self.budget),
            hedge=_core(HedgePolicy, self.hedge),
        )


_Part = TypeVar(
    "_Part", ReflexPolicy, FailbackPolicy, ForecastPolicy, AttemptPolicy, DomainPolicy, BudgetPolicy, HedgePolicy
)


def _core(kind: type[_Part], section: _Part) -> _Part:
    """Return a section as the core's own class: the one that pydantic made of it only bears its name, so that a process
    it is sent to would not find it.
    """
    return kind(**{field.name: getattr(section, field.name) for field in fields(section)})


class Config(Section):
    """A routecast service."""

    server: Server = Server()
    """Where the service listens."""
    data_dir: Path = Path("data")
    """History and retrained models; relative to the configuration file."""
    replica: Slug = "replica-0"
    """Name of this instance, unique among those that share `data_dir`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe message that is logged."""
    providers: Annotated[list[Provider], Field(min_length=1)]
    """All providers."""
    models: Annotated[list[Model], Field(min_length=1)]
    """All models."""
    policy: Thresholds = Thresholds()
    """Thresholds."""
    upstream: Upstream = Upstream()
    """How providers are called."""
    tenants: list[Tenant] = Field(default_factory=list)
    """Who may ask; anybody who reaches the service when empty."""
    operators: list[Operator] = Field(default_factory=list)
    """Who may see and change health by hand; whoever reaches the gRPC port when empty."""
    overload: Overload = Overload()
    """What happens when more is asked than can be served at once."""
    sessions: Sessions = Sessions()
    """Conversations kept on the server."""
    idempotency: Idempotency = Idempotency()
    """Requests with an idempotency key."""
    usage: Usage = Usage()
    """The ledger."""
    state: State = State()
    """What survives a restart."""
    history: History = History()
    """What is recorded."""
    scoring: Scoring = Scoring()
    """The scoring process."""
    tuning: Tuning = Tuning()
    """How thresholds are tuned."""

    @model_validator(mode="after")
    def _references_hold(self) -> Self:
        problems = self._duplicates() + self._unknown_providers() + self._unspoken()
        problems += tenant_problems(
            self.tenants, self.operators, self.overload, [provider.name for provider in self.providers]
        )
        if self.history.buffer_rows < self.history.flush_rows:
            expected = f"expected at least flush_rows ({self.history.flush_rows})"
            problems.append((("history", "buffer_rows"), expected))
        if problems:
            raise ReferencesError(problems)
        return self

    def _duplicates(self) -> list[tuple[tuple[str | int, ...], str]]:
        problems: list[tuple[tuple[str | int, ...], str]] = []
        for section, field, names in (
            ("providers", "name", [provider.name for provider in self.providers]),
            ("models", "id", [model.id for model in self.models]),
        ):
            for index, name in enumerate(names):
                if name in names[:index]:
                    problems.append(((section, index, field), f"{name!r} is declared twice, expected unique names"))
        for m, model in enumerate(self.models):
            served = [endpoint.provider for endpoint in model.endpoints]
            for e, name in enumerate(served):
                if name in served[:e]:
                    problems.append((("models", m, "endpoints", e, "provider"), f"{name!r} serves {model.id!r} twice"))
        return problems

    def _unknown_providers(self) -> list[tuple[tuple[str | int, ...], str]]:
        known = {provider.name for provider in self.providers}
        return [
            (
                ("models", m, "endpoints", e, "provider"),
                f"unknown provider {endpoint.provider!r}, expected one of {', '.join(sorted(known))}",
            )
            for m, model in enumerate(self.models)
            for e, endpoint in enumerate(model.endpoints)
            if endpoint.provider not in known
        ]

    def _unspoken(self) -> list[tuple[tuple[str | int, ...], str]]:
        """Embeddings and responses that are promised of a provider whose protocol has none."""
        kinds = {provider.name: provider.kind for provider in self.providers}
        return [
            (
                ("models", m, "endpoints", e, "capabilities"),
                f"{entry.provider!r} is of kind anthropic, which has no {capability}; expected a list without it",
            )
            for m, model in enumerate(self.models)
            for e, entry in enumerate(model.endpoints)
            if kinds.get(entry.provider) is ProviderKind.ANTHROPIC
            for capability in sorted(entry.capabilities if entry.capabilities is not None else model.capabilities)
            if capability in (Capability.EMBEDDINGS, Capability.RESPONSES)
        ]

    def catalogue(self) -> Catalogue:
        """Return the core's catalogue. An endpoint's id is provider:model."""
        providers = {provider.name: provider for provider in self.providers}
        return Catalogue.of(
            Endpoint(
                id=f"{entry.provider}:{model.id}",
                provider=entry.provider,
                region=providers[entry.provider].region,
                zone=providers[entry.provider].zone,
                model=model.id,
                provider_model=entry.provider_model,
                order=order,
                capabilities=model.capabilities if entry.capabilities is None else entry.capabilities,
                context_window_tokens=entry.context_window_tokens,
                input_usd_per_mtok=entry.input_usd_per_mtok,
                output_usd_per_mtok=entry.output_usd_per_mtok,
                company=providers[entry.provider].company or "",
            )
            for model in self.models
            for order, entry in enumerate(model.endpoints)
        )


class ReferencesError(ValueError):
    """Entries that contradict each other, each with its path."""

    def __init__(self, problems: list[tuple[tuple[str | int, ...], str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(text for _, text in problems))
