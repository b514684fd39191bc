"""API keys: whose they are, and what is kept of them."""

import hashlib
import hmac

import pytest

from service.cli import main
from service.tenancy.keys import KEY_BYTES, KeyRing, handle_of, hash_of, is_hash, is_key, new_key

SALT = bytes(range(16))
KEY = new_key(bytes(range(KEY_BYTES)))
OTHER = new_key(bytes(range(1, KEY_BYTES + 1)))


def test_a_key_is_found_by_its_handle_and_belongs_to_its_tenant() -> None:
    ring = KeyRing([(hash_of(KEY, SALT), "acme"), (hash_of(OTHER, SALT), "beta")])
    assert (ring.tenant_of(KEY), ring.tenant_of(OTHER)) == ("acme", "beta")


def test_a_right_handle_with_a_wrong_secret_is_nobodys() -> None:
    ring = KeyRing([(hash_of(KEY, SALT), "acme")])
    wrong = KEY[:-1] + ("A" if KEY[-1] != "A" else "B")
    assert is_key(wrong)
    assert handle_of(wrong) == handle_of(KEY)
    assert ring.tenant_of(wrong) is None


@pytest.mark.parametrize("given", ["", "rk_", KEY + "x", KEY.upper(), "Bearer " + KEY, KEY + "\n", "ключ", OTHER])
def test_what_is_no_known_key_is_nobodys(given: str) -> None:
    assert KeyRing([(hash_of(KEY, SALT), "acme")]).tenant_of(given) is None


def test_the_hash_is_hmac_sha256_under_its_salt_and_says_nothing_of_the_secret() -> None:
    kept = hash_of(KEY, SALT)
    digest = hmac.new(SALT, KEY.encode(), hashlib.sha256).hexdigest()
    assert kept == f"sha256:{handle_of(KEY)}:{SALT.hex()}:{digest}"
    assert is_hash(kept)
    assert KEY.rpartition("_")[2] not in kept
    assert hash_of(KEY, SALT[::-1]) != kept


def test_keys_are_made_of_all_their_bytes_and_of_no_fewer() -> None:
    flipped = bytes([*range(KEY_BYTES - 1), 255])
    assert new_key(flipped) != KEY
    with pytest.raises(ValueError, match="38 random bytes"):
        new_key(bytes(KEY_BYTES - 1))
    with pytest.raises(ValueError, match="tenant-key"):
        hash_of("sk-live-something", SALT)


def test_the_command_prints_a_key_and_its_hash_and_no_two_alike(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(["tenant-key"])
        assert ended.value.code in (0, None)
        printed.append(capsys.readouterr().out.split())
    (key, kept), (other, _) = printed
    assert key != other
    assert KeyRing([(kept, "acme")]).tenant_of(key) == "acme"
    assert KeyRing([(kept, "acme")]).tenant_of(other) is None
