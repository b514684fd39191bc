"""Request ids: the caller's own when it is fit for headers and logs, a fresh one otherwise."""

import re
import secrets

_FIT = re.compile(r"[!-~]{1,128}")


def request_id(given: str | None) -> str:
    """Return `given` if it is 1 to 128 visible ASCII characters, else a new random id."""
    return given if given is not None and _FIT.fullmatch(given) else secrets.token_hex(12)
