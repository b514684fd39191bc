"""Encryption at rest of what callers and models said.

Rule of this file: what was sealed for one place opens in no other. Each sealed value is bound to the row it belongs to,
so rows that were exchanged on the disk are refused. Values written before a key was configured stay readable.
"""

import hashlib
import secrets
from collections.abc import Sequence
from typing import Protocol

from service.store.errors import SealError

KEY_BYTES = 32
_PLAIN, _AES_GCM = b"\x00", b"\x01"
_KEY_ID_BYTES, _NONCE_BYTES = 4, 12


class _Cipher(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


class Seal:
    """Seals with the first of `keys` (32 bytes each), opens with any of them; without keys it marks values as plain.

    AES-256-GCM with random nonces (NIST SP 800-38D: at most 2^32 values per key). Raises ModuleNotFoundError when
    there are keys and the extra `encryption` is not installed.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._ciphers: dict[bytes, _Cipher] = {}
        self._current = b""
        if keys:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  # an extra

            self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
            self._current = _key_id(keys[0])

    def seal(self, plain: bytes, place: str) -> bytes:
        """Return the value as it may lie on the disk at `place`."""
        if not self._current:
            return _PLAIN + plain
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _AES_GCM + self._current + nonce + self._ciphers[self._current].encrypt(nonce, plain, place.encode())

    def open(self, sealed: bytes, place: str) -> bytes:
        """Return what was sealed for `place`. Raises SealError."""
        kind, rest = sealed[:1], sealed[1:]
        if kind == _PLAIN:
            return rest
        cipher = self._ciphers.get(rest[:_KEY_ID_BYTES]) if kind == _AES_GCM else None
        if cipher is None:
            raise SealError("sealed with a key that is not among state.encryption_keys")
        nonce, secret = rest[_KEY_ID_BYTES:][:_NONCE_BYTES], rest[_KEY_ID_BYTES + _NONCE_BYTES :]
        try:
            return cipher.decrypt(nonce, secret, place.encode())
        except Exception as error:  # InvalidTag, whose module is there only with the extra
            raise SealError("not what was written there") from error


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"routecast key id" + key).digest()[:_KEY_ID_BYTES]
