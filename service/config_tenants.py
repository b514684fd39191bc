"""The sections of the configuration about tenants and operators, and about what happens when more is asked than can be
served.
"""

from collections.abc import Collection, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from service.config_types import Seconds, Section, Slug
from service.tenancy.keys import handle_of, is_hash, is_key

_Problem = tuple[tuple[str | int, ...], str]
_Usd = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]


def _key_or_hash(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not (is_key(text) or is_hash(text)):
        raise ValueError("expected a hash, or ${NAME} of a key, as `routecast tenant-key` prints them")
    return value


ApiKey = Annotated[SecretStr, AfterValidator(_key_or_hash)]


class Tenant(Section):
    """Who pays and is limited. Without a limit, it has none."""

    name: Slug
    """Unique name, used in records."""
    api_keys: Annotated[list[ApiKey], Field(min_length=1)]
    """Its keys: hashes as `routecast tenant-key` prints them, or references to keys as ${NAME}. Never a key itself."""
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    """Its share of the work when not everybody can be served at once, against the others' weights."""
    criticality: Literal["critical", "default", "sheddable"] = "default"
    """Who is turned away first when the queue is full: sheddable, then default."""
    requests_per_min: _Count | None = None
    """Most requests in a minute."""
    tokens_per_min: _Count | None = None
    """Most tokens in a minute, input and output. A request reserves its input and the most it may output; what it did
    not use comes back.
    """
    max_concurrent: _Count | None = None
    """Most requests under way."""
    budget_usd_per_day: _Usd | None = None
    """Most that may be spent in a day (UTC)."""
    budget_usd_per_month: _Usd | None = None
    """Most that may be spent in a calendar month (UTC)."""
    max_cost_usd: _Usd | None = None
    """Most that one attempt may cost; endpoints that could cost more are left out."""
    allowed_providers: frozenset[Slug] = frozenset()
    """Providers that may serve it; all when empty."""
    credentials: dict[Slug, SecretStr] = Field(default_factory=dict)
    """Its own API keys by provider, as ${NAME} each; the provider's `api_key` serves where there is none."""


class Operator(Section):
    """Who may see and change health by hand (`routecast.admin.v1`). Without operators, whoever reaches the port may."""

    name: Slug
    """Unique name, used in records."""
    api_keys: Annotated[list[ApiKey], Field(min_length=1)]
    """Their keys, as a tenant's are given."""


class Overload(Section):
    """What happens when more is asked than can be served at once."""

    least_concurrent: _Count = 64
    """So many requests are always under way at once, however slow answers become."""
    most_concurrent: _Count = 4096
    """More are never; between the two, as many as do not slow each other down."""
    most_queued: Annotated[int, Field(ge=0)] = 1000
    """Most that wait for their turn."""
    most_queued_per_tenant: Annotated[int, Field(ge=0)] = 250
    """Most of one tenant that do."""
    max_wait_s: Seconds = 5.0
    """Longest that one waits for its turn; one that would wait longer is turned away at once."""


def tenant_problems(
    tenants: Sequence[Tenant], operators: Sequence[Operator], overload: Overload, providers: Collection[str]
) -> list[_Problem]:
    """Return what in these sections contradicts something else, each with its path."""
    handles: dict[str, str] = {}
    problems = _owner_problems("tenants", tenants, handles) + _owner_problems("operators", operators, handles)
    expected = f"expected one of {', '.join(sorted(providers))}"
    for index, tenant in enumerate(tenants):
        for field, named in (("allowed_providers", tenant.allowed_providers), ("credentials", tenant.credentials)):
            problems += [
                (("tenants", index, field), f"unknown provider {name!r}, {expected}")
                for name in set(named) - {*providers}
            ]
    if overload.most_concurrent < overload.least_concurrent:
        expected = f"expected at least least_concurrent ({overload.least_concurrent})"
        problems.append((("overload", "most_concurrent"), expected))
    return problems


def _owner_problems(section: str, owners: Sequence[Tenant | Operator], handles: dict[str, str]) -> list[_Problem]:
    """Return names and keys that are declared twice; `handles` collects whose each key is."""
    problems: list[_Problem] = []
    names: set[str] = set()
    for index, owner in enumerate(owners):
        path = (section, index)
        if owner.name in names:
            problems.append(((*path, "name"), f"{owner.name!r} is declared twice, expected unique names"))
        names.add(owner.name)
        for number, key in enumerate(owner.api_keys):
            handle = handle_of(key.get_secret_value())
            if handle in handles:
                problems.append(((*path, "api_keys", number), f"key {handle} is {handles[handle]!r}'s already"))
            handles[handle] = owner.name
    return problems
