"""API keys: what they look like, what is kept of them, and whose a key is.

A key is `rk_<handle>_<secret>`. Its handle, 48 bits, is no secret: it finds the hash to compare with, and may be told
to operators. Its secret is 256 random bits, and because we make keys, no shorter one exists: that is why a salted
HMAC-SHA-256 is enough and a slow hash (scrypt, Argon2) would only cost. Slowness buys time against guessing passwords;
nobody guesses 2²⁵⁶ keys at any speed, while every request would pay for the slowness, a forged key more than a right
one.
"""

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable

SALT_BYTES = 16
_HANDLE_BYTES, _SECRET_BYTES = 6, 32
KEY_BYTES = _HANDLE_BYTES + _SECRET_BYTES
_KEY = re.compile(r"rk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"sha256:([0-9a-f]{12}):([0-9a-f]{32}):([0-9a-f]{64})")


def new_key(random_bytes: bytes) -> str:
    """Return a key made of `KEY_BYTES` bytes of a cryptographic source. Raises ValueError for another number."""
    if len(random_bytes) != KEY_BYTES:
        raise ValueError(f"expected {KEY_BYTES} random bytes, got {len(random_bytes)}")
    secret = urlsafe_b64encode(random_bytes[_HANDLE_BYTES:]).rstrip(b"=").decode()
    return f"rk_{random_bytes[:_HANDLE_BYTES].hex()}_{secret}"


def hash_of(key: str, salt: bytes) -> str:
    """Return what may be written down of a key: `sha256:<handle>:<salt>:<digest>`. `salt` is `SALT_BYTES` random bytes.
    Raises ValueError when `key` is none.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError("expected a key as `routecast tenant-key` prints it")
    return f"sha256:{match[1]}:{salt.hex()}:{_digest(key, salt).hex()}"


def is_key(text: str) -> bool:
    """Tell whether a text has the form of a key."""
    return _KEY.fullmatch(text) is not None


def is_hash(text: str) -> bool:
    """Tell whether a text has the form of a key's hash."""
    return _HASH.fullmatch(text) is not None


def handle_of(text: str) -> str:
    """Return the handle of a key or of a hash. Raises ValueError for anything else."""
    match = _KEY.fullmatch(text) or _HASH.fullmatch(text)
    if match is None:
        raise ValueError("expected a key or its hash")
    return match[1]


class KeyRing:
    """The hashes of all keys, by handle, with whose they are.

    Args:
        hashes: pairs of a hash and the name of its tenant; handles are distinct.
    """

    def __init__(self, hashes: Iterable[tuple[str, str]]) -> None:
        self._by_handle: dict[str, tuple[bytes, bytes, str]] = {}
        for text, tenant in hashes:
            match = _HASH.fullmatch(text)
            if match is None:
                raise ValueError("expected a hash as `routecast tenant-key` prints it")
            self._by_handle[match[1]] = bytes.fromhex(match[2]), bytes.fromhex(match[3]), tenant

    def tenant_of(self, key: str) -> str | None:
        """Return whose key this is, None when it is nobody's. The time this takes tells nothing of a secret."""
        match = _KEY.fullmatch(key)
        found = self._by_handle.get(match[1]) if match is not None else None
        if found is None:
            return None
        salt, digest, tenant = found
        return tenant if hmac.compare_digest(_digest(key, salt), digest) else None


def _digest(key: str, salt: bytes) -> bytes:
    return hmac.digest(salt, key.encode(), "sha256")
