"""From a ServiceError to an HTTP response with an error body in the OpenAI shape; one middleware for all routes."""

import logging
from collections.abc import Awaitable, Callable
from math import ceil
from typing import Any

import msgspec
from aiohttp import web

from service.errors import (
    STATUS,
    BudgetExhaustedError,
    InvalidRequestError,
    NotFoundError,
    NotRepeatedError,
    ServiceError,
    TenantLimitError,
    UpstreamRejectedError,
    Violation,
)
from service.request_id import request_id

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REQUEST_ID = "x-request-id"
MAX_HEAD_BYTES = 32 * 1024
request_id_key: web.RequestKey[str] = web.RequestKey("request_id", str)


def error_body(error: ServiceError) -> dict[str, Any]:
    """Return the JSON body: OpenAI's `error` object, with the attempts beside it where there were any."""
    row = STATUS[type(error)]
    param = error.violations[0].field if isinstance(error, InvalidRequestError) else None
    body: dict[str, Any] = {
        "message": error.message,
        "type": row.openai_type,
        "param": "model" if isinstance(error, NotFoundError) and error.reason == "UNKNOWN_MODEL" else param,
        "code": "model_not_found" if error.reason == "UNKNOWN_MODEL" else error.reason.lower(),
    }
    if error.attempts:
        body["attempts"] = [
            {
                "number": a.number,
                "endpoint": a.endpoint_id,
                "provider": a.provider,
                "region": a.region,
                "outcome": a.outcome.value,
                "status": a.http_status,
                "error": a.error,
                "latency_ms": round(a.latency_s * 1e3, 3),
                "decision_id": a.decision_id,
                "hedge": a.hedge,
            }
            for a in error.attempts
        ]
    return {"error": body}


def check_head(request: web.Request) -> None:
    """Raise HTTPRequestHeaderFieldsTooLarge for a request whose headers together pass the limit."""
    size_bytes = sum([len(name) + len(value) for name, value in request.raw_headers])
    if size_bytes > MAX_HEAD_BYTES:
        expected = f"{size_bytes} bytes together, expected at most {MAX_HEAD_BYTES}"
        raise web.HTTPRequestHeaderFieldsTooLarge(text=expected)


def error_response(error: ServiceError) -> web.Response:
    """Return the response. A provider's refusal of the caller's request passes through with its own status and body."""
    if isinstance(error, UpstreamRejectedError):
        body = error.body if error.body is not None else msgspec.json.encode(error_body(error))
        headers = {"content-type": "application/json", **error.headers}
        return web.Response(status=error.status, body=body, headers=headers)
    headers = dict(error.headers) if isinstance(error, TenantLimitError) else {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(ceil(error.retry_after_s * 1e3))
    is_lasting = isinstance(error, TenantLimitError) and error.retry_after_s is None
    if error.attempts or is_lasting or isinstance(error, NotRepeatedError | BudgetExhaustedError):
        # The endpoints have been tried already, or may not be: a client's own retries would only multiply ours.
        headers["x-should-retry"] = "false"
    if error.attempts:
        headers["x-routecast-attempts"] = str(len(error.attempts))
    status = STATUS[type(error)].http
    return web.Response(
        status=status, body=msgspec.json.encode(error_body(error)), content_type="application/json", headers=headers
    )


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a response in the OpenAI shape, and put the request id on every response."""
    try:
        response = await handler(request)
    except ServiceError as error:
        response = error_response(error)
    except (web.HTTPRequestEntityTooLarge, web.HTTPRequestHeaderFieldsTooLarge) as error:
        part = "body" if error.status == 413 else "headers"
        response = error_response(InvalidRequestError(Violation(part, error.text or "too large")))
        response.set_status(error.status)
    except web.HTTPException as error:
        what = f"{request.method} {request.path}: {error.reason}"
        body = {"error": {"message": what, "type": "invalid_request_error", "param": None, "code": "unknown_path"}}
        response = web.json_response(body, status=error.status)
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers["allow"] = error.headers["allow"]
    except Exception:
        log.exception("unexpected error in %s %s", request.method, request.path)
        response = error_response(ServiceError("internal error; the service's log has the details"))
    if not response.prepared:
        identity = request.get(request_id_key) or request_id(request.headers.get(REQUEST_ID))
        response.headers.setdefault(REQUEST_ID, identity)
    return response
