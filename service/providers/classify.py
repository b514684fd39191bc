"""From what a provider said, or from how the connection ended, to the one `Outcome` of the attempt.

The rule of this file: it is data. A status, an error code or a transport error is looked up; only the question whether
an error is about the model needs words. What the operator must mend (key, account, base URL, model name) is AUTH_ERROR:
the caller is not to blame and another endpoint may serve.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from routing.outcomes import Outcome
from service.providers.transport import (
    BodyTooLarge,
    ConnectFailed,
    ConnectionBroken,
    FirstByteTimeout,
    StallTimeout,
    TransportError,
)

_TEXT_CHARACTERS = 200

_STATUS: Mapping[int, Outcome] = MappingProxyType(
    {
        401: Outcome.AUTH_ERROR,
        402: Outcome.AUTH_ERROR,  # the account is out of credit
        403: Outcome.AUTH_ERROR,
        404: Outcome.AUTH_ERROR,  # neither path nor provider model are the caller's
        408: Outcome.TIMEOUT,
        429: Outcome.RATE_LIMITED,
        504: Outcome.TIMEOUT,
    }
)
_STATUS_CLASS: Mapping[int, Outcome] = MappingProxyType(
    {
        3: Outcome.AUTH_ERROR,  # redirects are not followed: the base URL is wrong
        4: Outcome.CLIENT_ERROR,
        5: Outcome.SERVER_ERROR,
    }
)
_CODE: Mapping[str, Outcome] = MappingProxyType(
    {
        "rate_limit_exceeded": Outcome.RATE_LIMITED,
        "rate_limit_error": Outcome.RATE_LIMITED,
        "insufficient_quota": Outcome.RATE_LIMITED,
        "too_many_requests": Outcome.RATE_LIMITED,
        "timeout": Outcome.TIMEOUT,
        "timeout_error": Outcome.TIMEOUT,
        "gateway_timeout": Outcome.TIMEOUT,
        "invalid_api_key": Outcome.AUTH_ERROR,
        "authentication_error": Outcome.AUTH_ERROR,
        "permission_error": Outcome.AUTH_ERROR,
        "permission_denied": Outcome.AUTH_ERROR,
        "billing_error": Outcome.AUTH_ERROR,
        "deploymentnotfound": Outcome.AUTH_ERROR,
        "model_not_found": Outcome.AUTH_ERROR,
        "invalid_model": Outcome.AUTH_ERROR,
        "not_found_error": Outcome.AUTH_ERROR,
        "invalid_request_error": Outcome.CLIENT_ERROR,
        "request_too_large": Outcome.CLIENT_ERROR,
        "context_length_exceeded": Outcome.CLIENT_ERROR,
        "content_filter": Outcome.CLIENT_ERROR,
        "content_policy_violation": Outcome.CLIENT_ERROR,
    }
)
_TRANSPORT: Mapping[type[TransportError], Outcome] = MappingProxyType(
    {
        ConnectFailed: Outcome.CONNECT_ERROR,
        FirstByteTimeout: Outcome.TIMEOUT,
        StallTimeout: Outcome.STALLED,
        # The request had gone out, so it may have been executed: not a CONNECT_ERROR, even if not a byte came back.
        ConnectionBroken: Outcome.TRUNCATED,
        BodyTooLarge: Outcome.MALFORMED,
    }
)
_MODEL_CODES = frozenset({"model_not_found", "invalid_model"})
_MODEL_WORDS = re.compile(
    r"\bmodels?\b.{0,120}\b(not (found|exist|supported)|does not exist|unknown|no such)|"
    r"\b(unknown|no such|invalid) model\b",
    re.IGNORECASE | re.DOTALL,
)
_MODEL_STATUSES = frozenset({400, 404, 422})


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """What an error body says. `codes` are its code and type as lower-case text, integers included."""

    message: str
    codes: tuple[str, ...]


def detail_of(body: bytes) -> ErrorDetail:
    """Read an error body of any shape in use: `{"error": {…}}`, `{"error": "…"}`, a list of one, `{"detail": "…"}`.

    A body that is not JSON has no codes and no message.
    """
    try:
        said: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return ErrorDetail("", ())
    if isinstance(said, list) and said:
        said = said[0]
    if isinstance(said, dict):
        said = said.get("error") or said
    if isinstance(said, str):
        return ErrorDetail(said, ())
    if not isinstance(said, dict):
        return ErrorDetail("", ())
    message = next((said[name] for name in ("message", "detail") if isinstance(said.get(name), str)), "")
    codes = [said.get(name) for name in ("code", "type", "status")]
    named = tuple(str(c).lower() for c in codes if isinstance(c, str | int) and not isinstance(c, bool) and c)
    return ErrorDetail(message, named)


def is_error_object(body: bytes) -> bool:
    """Is this JSON an error object rather than an answer?"""
    try:
        said: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and (bool(said.get("error")) or "error" in (said.get("type"), said.get("object")))


def of_status(status: int, detail: ErrorDetail) -> Outcome:
    """Class an HTTP answer other than 2xx; what `detail` says of the model counts, the rest is the status's."""
    if status in _MODEL_STATUSES and is_about_the_model(detail):
        return Outcome.AUTH_ERROR
    return _STATUS.get(status) or _STATUS_CLASS.get(status // 100, Outcome.MALFORMED)


def of_error_object(detail: ErrorDetail) -> Outcome:
    """Class an error object that came under status 200; one that says nothing known is the provider's own fault."""
    for code in detail.codes:
        if code in _CODE:
            return _CODE[code]
        if code.isdecimal() and len(code) == 3:
            return of_status(int(code), detail)
    return Outcome.SERVER_ERROR


def of_transport_error(error: TransportError) -> Outcome:
    """Class a connection that failed."""
    return _TRANSPORT[type(error)]


def is_about_the_model(detail: ErrorDetail) -> bool:
    """Does the provider say that it has no such model?"""
    return not _MODEL_CODES.isdisjoint(detail.codes) or bool(_MODEL_WORDS.search(detail.message))


def error_text(detail: ErrorDetail, outcome: Outcome, status: int | None) -> str:
    """Return one short line: what `detail` says, introduced by the status, and marked where the operator must act."""
    said = " ".join(detail.message.split())[:_TEXT_CHARACTERS]
    code = detail.codes[0][:40] if detail.codes else ""
    parts = [str(status) if status is not None else "", "" if code == str(status) else code, said]
    line = ": ".join(part for part in parts if part) or "the provider reported an error without a reason"
    if outcome is Outcome.AUTH_ERROR and status not in (401, 402, 403):
        return f"configuration of this provider (base URL, model name or account): {line}"
    return line
