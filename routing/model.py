"""The nouns of the core: endpoint, catalogue, request. Frozen values; nothing here behaves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from math import inf
from types import MappingProxyType

from routing.errors import CatalogueError, RequestError, UnknownEndpointError, UnknownModelError


class Capability(StrEnum):
    """What an endpoint can do and a request may need."""

    CHAT = "chat"
    STREAMING = "streaming"
    TOOLS = "tools"
    VISION = "vision"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"


class RegionPolicy(StrEnum):
    """What a request's region means: nothing, a preference that gives way to health, or a border it may not cross."""

    ANYWHERE = "anywhere"
    PREFER = "prefer"
    STAY = "stay"


class Objective(Enum):
    """What a request wants most. ORDERED keeps the configured order, LEAST_LOADED spreads by what is in flight; the
    others rank by their scorers.
    """

    ORDERED = "ordered"
    RELIABLE = "reliable"
    FASTEST = "fastest"
    CHEAPEST = "cheapest"
    BALANCED = "balanced"
    LEAST_LOADED = "least_loaded"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One provider × region × canonical model: the unit that is scored, ejected and probed.

    `order` is its rank among the model's endpoints (0 = primary). Prices are USD per million tokens.
    `context_window_tokens` of None means unknown, and no request is refused for it. `company` is who runs the provider
    when several providers are one company's regions: the widest failure domain; the provider itself when empty.
    """

    id: str
    provider: str
    region: str
    zone: str
    model: str
    provider_model: str
    order: int
    capabilities: frozenset[Capability]
    context_window_tokens: int | None = None
    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0
    company: str = ""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All endpoints, indexed. Build it with `Catalogue.of`."""

    endpoints: Mapping[str, Endpoint]
    by_model: Mapping[str, tuple[Endpoint, ...]]

    @classmethod
    def of(cls, endpoints: Iterable[Endpoint]) -> "Catalogue":
        """Index `endpoints`; those of one model are kept in their configured order.

        Raises CatalogueError when two endpoints share an id.
        """
        by_id: dict[str, Endpoint] = {}
        grouped: dict[str, list[Endpoint]] = {}
        for endpoint in endpoints:
            if endpoint.id in by_id:
                raise CatalogueError(f"endpoint {endpoint.id!r} is declared twice")
            by_id[endpoint.id] = endpoint
            grouped.setdefault(endpoint.model, []).append(endpoint)
        by_model = {model: tuple(sorted(group, key=lambda e: (e.order, e.id))) for model, group in grouped.items()}
        return cls(MappingProxyType(by_id), MappingProxyType(by_model))

    def endpoint(self, endpoint_id: str) -> Endpoint:
        """Return the endpoint, or raise UnknownEndpointError."""
        try:
            return self.endpoints[endpoint_id]
        except KeyError:
            raise UnknownEndpointError(endpoint_id) from None

    def endpoints_for(self, model: str) -> tuple[Endpoint, ...]:
        """Return the model's endpoints in configured order, or raise UnknownModelError."""
        try:
            return self.by_model[model]
        except KeyError:
            raise UnknownModelError(model, sorted(self.by_model)) from None


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What a decision needs to know of a request.

    `input_tokens` is an estimate, for context windows and cost only; `max_output_tokens` what the caller allows (0:
    unknown). `excluded` holds the endpoints already tried for this request; `affine_endpoint` is the one that served
    the session last. `region` with `region_policy` says where the request wants to be served. `allowed_providers`
    (empty: all) and `budget_usd`, the most that one attempt may cost, are what the tenant's policy allows. `spared` are
    overloaded endpoints that a retry leaves in peace. With CHEAPEST, endpoints whose usual latency is above `slo_s`
    serve only what the others cannot. Raises RequestError for a region policy without a region, and for values out of
    range.
    """

    model: str
    needs: frozenset[Capability] = frozenset()
    objective: Objective = Objective.ORDERED
    agent: str = ""
    tenant: str = ""
    input_tokens: int = 0
    preferred_provider: str = ""
    affine_endpoint: str = ""
    excluded: frozenset[str] = frozenset()
    region: str = ""
    region_policy: RegionPolicy = RegionPolicy.ANYWHERE
    allowed_providers: frozenset[str] = frozenset()
    max_output_tokens: int = 0
    budget_usd: float = inf
    slo_s: float = inf
    spared: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.region_policy is not RegionPolicy.ANYWHERE and not self.region:
            raise RequestError("region", "", f"the region that policy {self.region_policy.value!r} is about")
        if not self.slo_s > 0:
            raise RequestError("slo_s", self.slo_s, "seconds above 0")
        if not self.budget_usd >= 0:
            raise RequestError("budget_usd", self.budget_usd, "dollars of 0 or more")
