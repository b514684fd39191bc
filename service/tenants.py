"""From the configuration to what tenants have: shares of the gate, accounts, and adapters with keys of their own."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from analytics.queries import usage
from analytics.store import connect
from service.config_tenants import Overload, Tenant
from service.config_upstream import Provider
from service.providers.base import Adapter
from service.providers.factory import adapter_for
from service.providers.transport import Transport
from service.tenancy.accounts import Account, Limits
from service.tenancy.budgets import Period, begin_of
from service.tenancy.fair_queue import Criticality, Share
from service.tenancy.gate import Bounds, Gate
from service.tenancy.limiter import GradientLimiter, LimiterPolicy

Spent = Mapping[str, Mapping[Period, float]]


def gate_for(tenants: Sequence[Tenant], overload: Overload, now: float) -> Gate:
    """Return the gate. Without tenants all are one, who may fill the whole queue."""
    shares = {tenant.name: Share(tenant.weight, Criticality[tenant.criticality.upper()]) for tenant in tenants}
    most_per_flow = overload.most_queued_per_tenant if shares else overload.most_queued
    limits = LimiterPolicy(least=overload.least_concurrent, most=overload.most_concurrent)
    return Gate(shares or {"": Share()}, Bounds(overload.most_queued, most_per_flow), GradientLimiter(limits, now))


def accounts_for(tenants: Iterable[Tenant], now: float, spent: Spent) -> dict[str, Account]:
    """Return an account for each tenant, that goes on from what it has `spent`."""
    return {
        tenant.name: Account(
            Limits(
                tenant.requests_per_min,
                tenant.tokens_per_min,
                tenant.max_concurrent,
                tenant.budget_usd_per_day,
                tenant.budget_usd_per_month,
            ),
            now,
            spent.get(tenant.name, {}),
        )
        for tenant in tenants
    }


def spent_usd(history: Path, tenants: Iterable[Tenant], now: float) -> Spent:
    """Return what each tenant with a budget has spent in the current periods, by the ledger in the history.

    Blocks. Raises HistoryError and duckdb.Error for a history that cannot be read.
    """
    names = [t.name for t in tenants if t.budget_usd_per_day is not None or t.budget_usd_per_month is not None]
    spent = {name: dict.fromkeys(Period, 0.0) for name in names}
    if not names:
        return spent
    with connect(history) as connection:
        for period in Period:
            for row in usage(connection, begin_of(period, now), now):
                if row.tenant in spent:
                    spent[row.tenant][period] += row.cost_usd or 0.0
    return spent


def own_adapters(
    tenants: Iterable[Tenant], providers: Iterable[Provider], transport: Transport
) -> dict[tuple[str, str], Adapter]:
    """Return the adapters that use a tenant's own key, by tenant and provider."""
    by_name = {provider.name: provider for provider in providers}
    return {
        (tenant.name, name): adapter_for(by_name[name].model_copy(update={"api_key": key}), transport)
        for tenant in tenants
        for name, key in tenant.credentials.items()
    }
