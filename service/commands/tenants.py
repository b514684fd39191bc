"""`routecast tenant-key`: a new API key for a tenant."""

import secrets

from service.commands.common import ERR, OUT
from service.tenancy.keys import KEY_BYTES, SALT_BYTES, hash_of, new_key


def tenant_key() -> None:
    """Print a new API key, and its hash for the configuration. Nothing is kept of the key: it is shown this once."""
    key = new_key(secrets.token_bytes(KEY_BYTES))
    ERR.print("The key, for the caller; it is not shown again:", highlight=False)
    OUT.print(key, markup=False, highlight=False, soft_wrap=True)
    ERR.print("Its hash, for `tenants[].api_keys` of the configuration:", highlight=False)
    OUT.print(hash_of(key, secrets.token_bytes(SALT_BYTES)), markup=False, highlight=False, soft_wrap=True)
