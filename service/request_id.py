"""Request ids: the caller's own when it is fit for headers and logs, a fresh one otherwise."""

import re
from random import Random

_FIT = re.compile(r"[!-~]{1,128}")
# Ids have to be distinct, not secret, and the kernel's randomness costs a system call each. Seeded by the kernel.
_IDS = Random()


def request_id(given: str | None) -> str:
    """Return `given` if it is 1 to 128 visible ASCII characters, else a new random id."""
    return given if given is not None and _FIT.fullmatch(given) else f"{_IDS.getrandbits(96):024x}"
