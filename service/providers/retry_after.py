"""When a provider wants to be asked again, from the headers of its refusal.

The rule of this file: it is pure, and a header that makes no sense counts as absent: better no hint than a wrong one.
`headers` have lower-case names; `now` is seconds since the epoch.
"""

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[dhms]))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_RESET = "x-ratelimit-reset"
_REMAINING = "x-ratelimit-remaining"
_EPOCH_S = 1e9  # numbers from here on are points in time, not durations
_EPOCH_MS = 1e12


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return how many seconds until a limit lets requests through again, >= 0, or None without a usable hint.

    What the provider asked for comes first (`asked_wait_s`); else `x-ratelimit-reset-*` of the limits that are used up
    (the longest), or, where it is not said which are, of all (the shortest).
    """
    asked = asked_wait_s(headers, now)
    if asked is not None:
        return asked
    resets = dict(_resets(headers, now))
    used_up = [wait for unit, wait in resets.items() if _is_zero(headers.get(f"{_REMAINING}{unit}", ""))]
    return max(used_up) if used_up else min(resets.values(), default=None)


def asked_wait_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return `retry-after-ms`, or `retry-after` as seconds or HTTP date (RFC 9110, 10.2.3), in seconds >= 0."""
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return _finite(float(milliseconds) / 1000)
    named = headers.get("retry-after", "").strip()
    return _finite(float(named)) if _NUMBER.fullmatch(named) else _until_date(named, now)


def _resets(headers: Mapping[str, str], now: float) -> Iterator[tuple[str, float]]:
    for name, value in headers.items():
        if name.startswith(_RESET):
            wait = _reset_s(value.strip(), now)
            if wait is not None:
                yield name.removeprefix(_RESET), wait


def _reset_s(value: str, now: float) -> float | None:
    if _DURATION.fullmatch(value):
        return _finite(sum(float(amount) * _UNITS_S[unit] for amount, unit in _DURATION_PART.findall(value)))
    if not _NUMBER.fullmatch(value):
        return _until_iso(value, now)
    number = float(value)
    if number >= _EPOCH_MS:
        return _finite(max(0.0, number / 1000 - now))
    return _finite(max(0.0, number - now) if number >= _EPOCH_S else number)


def _until_date(value: str, now: float) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return _until(moment, now)


def _until_iso(value: str, now: float) -> float | None:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return _until(moment, now)


def _until(moment: datetime, now: float) -> float | None:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    try:
        return max(0.0, aware.timestamp() - now)
    except (OverflowError, ValueError):
        return None


def _is_zero(remaining: str) -> bool:
    return bool(_NUMBER.fullmatch(remaining.strip())) and float(remaining) == 0.0


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None
