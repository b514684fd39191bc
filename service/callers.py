"""Who asks: from the key a caller shows to its tenant, and what that tenant's policy makes of a request.

A tenant is never named by its caller in any other way. Keys are neither kept nor logged; a refusal names the handle of
what was shown, if it has one, which is no secret.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from routing.model import RouteRequest
from service.config_tenants import Operator, Tenant
from service.errors import UnauthenticatedError
from service.tenancy.keys import SALT_BYTES, KeyRing, handle_of, hash_of, is_key

_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant as the edges know it: its name, and what its policy allows every request."""

    tenant: str = ""
    allowed_providers: frozenset[str] = frozenset()
    max_cost_usd: float = inf

    def asks(self, route: RouteRequest) -> RouteRequest:
        """Return the request as this tenant may make it."""
        if not self.tenant:
            return route
        budget_usd = min(route.budget_usd, self.max_cost_usd)
        return replace(route, tenant=self.tenant, allowed_providers=self.allowed_providers, budget_usd=budget_usd)


ANYBODY = Caller()


class Callers:
    """All who may ask. Without tenants, anybody may, and all are one: `are_anybody`."""

    def __init__(self, tenants: Sequence[Tenant]) -> None:
        self.are_anybody = not tenants
        self._callers = {
            tenant.name: Caller(tenant.name, tenant.allowed_providers, tenant.max_cost_usd or inf) for tenant in tenants
        }
        self._ring = _ring_of(tenants)

    def of(self, authorization: str | None) -> Caller:
        """Return who shows this `Authorization`. Raises UnauthenticatedError."""
        return ANYBODY if self.are_anybody else self._callers[_owner(self._ring, authorization)]


class Operators:
    """All who may operate. Without any, whoever asks may."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        self._are_anybody = not operators
        self._ring = _ring_of(operators)

    def of(self, authorization: str | None) -> str:
        """Return the name of who shows this `authorization`, "" where anybody may. Raises UnauthenticatedError."""
        return "" if self._are_anybody else _owner(self._ring, authorization)


def _ring_of(owners: Sequence[Tenant] | Sequence[Operator]) -> KeyRing:
    return KeyRing((_hash(key.get_secret_value()), owner.name) for owner in owners for key in owner.api_keys)


def _owner(ring: KeyRing, authorization: str | None) -> str:
    if not authorization:
        message = "no API key: expected the header `Authorization: Bearer <key>`, or `authorization` as metadata"
        raise UnauthenticatedError("API_KEY_MISSING", message)
    key = authorization[len(_SCHEME) :].strip() if authorization[: len(_SCHEME)].lower() == _SCHEME else ""
    owner = ring.tenant_of(key)
    if owner is None:
        known = f" (handle {handle_of(key)})" if is_key(key) else ""
        raise UnauthenticatedError("INVALID_API_KEY", f"the API key{known} is not known here")
    return owner


def _hash(key_or_hash: str) -> str:
    return hash_of(key_or_hash, secrets.token_bytes(SALT_BYTES)) if is_key(key_or_hash) else key_or_hash
