"""The nouns of the core: endpoint, catalogue, request. Frozen values; nothing here behaves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from types import MappingProxyType

from routing.errors import CatalogueError, UnknownEndpointError, UnknownModelError


class Capability(StrEnum):
    """What an endpoint can do and a request may need."""

    CHAT = "chat"
    STREAMING = "streaming"
    TOOLS = "tools"
    VISION = "vision"
    EMBEDDINGS = "embeddings"


class Objective(Enum):
    """What a request wants most. ORDERED keeps the configured order; the others rank by their scorers."""

    ORDERED = "ordered"
    RELIABLE = "reliable"
    FASTEST = "fastest"
    CHEAPEST = "cheapest"
    BALANCED = "balanced"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One provider × region × canonical model: the unit that is scored, ejected and probed.

    `order` is its rank among the model's endpoints (0 = primary). Prices are USD per million tokens.
    `context_window_tokens` of None means unknown, and no request is refused for it.
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

    `input_tokens` is an estimate, used against context windows only. `excluded` holds the endpoints already tried for
    this request; `affine_endpoint` is the one that served the session last.
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
