"""Whose key an endpoint refuses: one tenant's bad key says nothing about the endpoint, and never takes it from others.

A tenant whose key was refused is kept away from the endpoint for a pause that doubles with each further refusal, so
that a mended key is found out without an operator, and a bad one costs few requests.
"""

from collections.abc import Mapping
from types import MappingProxyType

_FIRST_PAUSE_S = 5.0
_MAX_PAUSE_S = 300.0
_MOST_TENANTS = 1024

NOBODY: Mapping[str, float] = MappingProxyType({})


class Credentials:
    """The refused tenants of one endpoint, at most 1,024: beyond that the pause that ends first is forgotten."""

    __slots__ = ("_pause_s", "_until", "barred")

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._pause_s: dict[str, float] = {}
        self.barred = NOBODY

    def refused(self, tenant: str, now: float) -> bool:
        """The endpoint refused the tenant's key; return whether a new pause begins. During one, nothing changes: the
        requests were sent before it began.
        """
        if now < self._until.get(tenant, 0.0):
            return False
        if tenant not in self._until and len(self._until) >= _MOST_TENANTS:
            self._forget(min(self._until, key=self._until.__getitem__))
        pause_s = self._pause_s.get(tenant, _FIRST_PAUSE_S)
        self._until[tenant] = now + pause_s
        self._pause_s[tenant] = min(2 * pause_s, _MAX_PAUSE_S)
        self._publish()
        return True

    def accepted(self, tenant: str) -> bool:
        """The endpoint served the tenant; return whether that ends a pause."""
        if tenant not in self._until:
            return False
        self._forget(tenant)
        self._publish()
        return True

    def _forget(self, tenant: str) -> None:
        del self._until[tenant], self._pause_s[tenant]

    def _publish(self) -> None:
        # Snapshots keep what they were given, so each change makes a new mapping.
        self.barred = MappingProxyType(dict(self._until)) if self._until else NOBODY
