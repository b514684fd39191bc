"""The OpenAI-compatible routes. Bodies pass through; only what routing needs is read.

Routing wishes come as headers, so that any OpenAI client can send them: `x-routecast-objective`, `-provider`,
`-agent`, `-session`, `-truncation`, `-idempotent`, `-continue`, `-region`, `-region-policy`, `-max-cost-usd`,
`-latency-objective-s`. What became of the request goes back the same way: `x-routecast-endpoint`, `-provider`,
`-attempts`, `-decision`, `-cost-usd`, and where it was so `-dropped-messages` and `-replayed`; a comment in a stream
says where it was continued.
"""

from collections.abc import Mapping
from contextlib import aclosing
from typing import TypeVar

import msgspec
from aiohttp import web

from routing.errors import RequestError, UnknownModelError
from routing.model import Catalogue, Objective, RegionPolicy, RouteRequest
from routing.outcomes import Outcome
from service.callers import Caller, Callers
from service.completion import Begun, Completion, Continued, Report
from service.config import Truncation
from service.errors import InvalidRequestError, NotFoundError, ServiceError, Violation
from service.http.errors import REQUEST_ID, check_head, error_body, error_response, request_id_key
from service.http.events import event_writer
from service.providers.base import Chunk, Operation
from service.request_id import request_id
from service.serving import Serving
from service.wire import Asked, asked, body_fields, flag_field, text_field

_PREFIX = "x-routecast-"
_FORWARDED = ("openai-beta", "traceparent", "tracestate", "baggage", "x-client-request-id")
# Not forwarded: two tenants may use the same one, and share an account with a provider.
_IDEMPOTENCY_KEY = "idempotency-key"
_OBJECTIVES = {objective.value: objective for objective in Objective}
_EVENT_STREAM = {"content-type": "text/event-stream", "cache-control": "no-cache"}
_REGION_POLICIES = {policy.value: policy for policy in RegionPolicy}
# The core's name for a field, where the header has another.
_HEADER_OF = {"budget_usd": "max-cost-usd", "slo_s": "latency-objective-s"}
_TRUNCATIONS = {"": None} | {truncation.value: truncation for truncation in Truncation}
_BOOLEANS = {"true": True, "false": False}
_Value = TypeVar("_Value")


class OpenAiRoutes:
    """`/v1/…` for one server of requests and catalogue."""

    def __init__(self, serving: Serving, callers: Callers, catalogue: Catalogue) -> None:
        self._serving = serving
        self._callers = callers
        self._catalogue = catalogue

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/embeddings", self.embeddings),
            web.post("/v1/responses", self.responses),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model:.+}", self.model),
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Serve a chat completion, whole or as server-sent events."""
        completion = await self._completion(request, Operation.CHAT)
        return await self._stream(request, completion) if completion.stream else await self._whole(completion)

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """Serve embeddings."""
        return await self._whole(await self._completion(request, Operation.EMBEDDINGS))

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """Serve a response of the Responses API, whole or as typed events. What it refers to (`previous_response_id`)
        lives with the provider that made it.
        """
        completion = await self._completion(request, Operation.RESPONSES)
        if completion.session_id:
            raise InvalidRequestError(
                Violation(f"{_PREFIX}session", "expected none: sessions are for chat completions")
            )
        return await self._stream(request, completion) if completion.stream else await self._whole(completion)

    async def models(self, request: web.Request) -> web.Response:
        """List the canonical models."""
        self._caller(request)
        data = [_model_object(model) for model in sorted(self._catalogue.by_model)]
        return web.json_response({"object": "list", "data": data})

    async def model(self, request: web.Request) -> web.Response:
        """Show one canonical model."""
        self._caller(request)
        try:
            self._catalogue.endpoints_for(request.match_info["model"])
        except UnknownModelError as error:
            raise NotFoundError("UNKNOWN_MODEL", str(error), error.known) from error
        return web.json_response(_model_object(request.match_info["model"]))

    def _caller(self, request: web.Request) -> Caller:
        return self._callers.of(request.headers.get("authorization"))

    async def _completion(self, request: web.Request, operation: Operation) -> Completion:
        identity = request_id(request.headers.get(REQUEST_ID))
        request[request_id_key] = identity
        check_head(request)
        _check_text(request)
        caller = self._caller(request)
        fields = body_fields(await request.read())
        stream = operation is not Operation.EMBEDDINGS and flag_field(fields, "stream")
        model, wanted = text_field(fields, "model"), asked(operation, fields, stream=stream)
        return Completion(
            operation=operation,
            fields=fields,
            route=caller.asks(_route(request, model, wanted)),
            request_id=identity,
            edge="http",
            stream=stream,
            idempotent=_one_of(request, "idempotent", _BOOLEANS, default="true"),
            session_id=request.headers.get(f"{_PREFIX}session", ""),
            headers={name: request.headers[name] for name in _FORWARDED if name in request.headers},
            query=request.rel_url.raw_query_string,
            idempotency_key=_idempotency_key(request),
            truncation=_one_of(request, "truncation", _TRUNCATIONS, default=""),
            may_hedge=_one_of(request, "idempotent", _BOOLEANS, default="false"),
            continues=_one_of(request, "continue", _BOOLEANS, default="false"),
            messages=wanted.messages,
        )

    async def _whole(self, completion: Completion) -> web.Response:
        served = await self._serving.complete(completion)
        report = _report_headers(served.report, completion.request_id)
        headers = {"content-type": "application/json", **served.reply.headers, **report}
        return web.Response(status=served.reply.status, body=served.reply.body, headers=headers)

    async def _stream(self, request: web.Request, completion: Completion) -> web.StreamResponse:
        response, writer = web.StreamResponse(), event_writer(completion.operation)
        try:
            async with aclosing(self._serving.stream(completion)) as items:
                async for item in items:
                    match item:
                        case Begun():
                            response.headers.update(_begun_headers(item, completion.request_id) | _EVENT_STREAM)
                            await response.prepare(request)
                        case Chunk():
                            if item.usage_requested:
                                await response.write(writer.chunk(item))
                        case Continued():
                            await response.write(_continued_comment(item))
                        case Report():
                            await response.write(writer.ending)
        except ServiceError as error:
            if not response.prepared:
                return error_response(error)
            await response.write(writer.error(error_body(error)))
        await response.write_eof()
        return response


def _route(request: web.Request, model: str, wanted: Asked) -> RouteRequest:
    headers = request.headers
    try:
        return RouteRequest(
            model=model,
            objective=_one_of(request, "objective", _OBJECTIVES, default=Objective.ORDERED.value),
            agent=headers.get(f"{_PREFIX}agent", ""),
            preferred_provider=headers.get(f"{_PREFIX}provider", ""),
            region=headers.get(f"{_PREFIX}region", ""),
            region_policy=_one_of(request, "region-policy", _REGION_POLICIES, default=RegionPolicy.ANYWHERE.value),
            budget_usd=_number(request, "max-cost-usd", "dollars"),
            slo_s=_number(request, "latency-objective-s", "seconds"),
            needs=wanted.needs,
            input_tokens=wanted.input_tokens,
            max_output_tokens=wanted.max_output_tokens,
        )
    except RequestError as error:
        header = _HEADER_OF.get(error.field, error.field)
        raise InvalidRequestError(Violation(f"{_PREFIX}{header}", str(error))) from error


def _check_text(request: web.Request) -> None:
    """Raise InvalidRequestError for a header of ours, or to be passed on, that is no UTF-8: such a text can be neither
    recorded nor sent.
    """
    for name, value in request.headers.items():
        if value.isascii() or not name.lower().startswith((_PREFIX, *_FORWARDED)):
            continue
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError(Violation(name.lower(), "expected text in UTF-8")) from None


def _idempotency_key(request: web.Request) -> str:
    key = request.headers.get(_IDEMPOTENCY_KEY)
    if key == "":
        raise InvalidRequestError(Violation(_IDEMPOTENCY_KEY, "expected a key, or no such header"))
    return key or ""


def _number(request: web.Request, name: str, unit: str) -> float:
    text = request.headers.get(f"{_PREFIX}{name}", "inf")
    try:
        return float(text)
    except ValueError:
        raise InvalidRequestError(Violation(f"{_PREFIX}{name}", f"{text!r}: expected {unit}")) from None


def _one_of(request: web.Request, name: str, values: Mapping[str, _Value], *, default: str) -> _Value:
    given = request.headers.get(f"{_PREFIX}{name}", default).lower()
    if given not in values:
        expected = f"unknown value {given!r}, expected one of {', '.join(values)}"
        raise InvalidRequestError(Violation(f"{_PREFIX}{name}", expected))
    return values[given]


def _begun_headers(begun: Begun, request_id: str) -> dict[str, str]:
    headers = {
        **begun.headers,
        REQUEST_ID: request_id,
        f"{_PREFIX}endpoint": begun.endpoint.id,
        f"{_PREFIX}provider": begun.endpoint.provider,
        f"{_PREFIX}attempts": str(begun.number),
        f"{_PREFIX}decision": begun.decision_id,
    }
    if begun.dropped_messages:
        headers[f"{_PREFIX}dropped-messages"] = str(begun.dropped_messages)
    if begun.replayed:
        headers[f"{_PREFIX}replayed"] = "true"
    return headers


def _continued_comment(continued: Continued) -> bytes:
    """Return a comment of the event stream, which clients pass over unless they look for it: the answer broke off, and
    what follows continues it from elsewhere.
    """
    said = {"endpoint": continued.endpoint.id, "provider": continued.endpoint.provider, "attempt": continued.number}
    return b": " + _PREFIX.encode() + b"continued " + msgspec.json.encode(said) + b"\n\n"


def _report_headers(report: Report, request_id: str) -> dict[str, str]:
    last = report.attempts[-1]
    # The last may be a hedge that came too late: an attempt too, but not the one that served.
    served = next((attempt for attempt in report.attempts if attempt.outcome is Outcome.OK), last)
    begun = Begun(report.endpoint, last.number, served.decision_id, {}, report.dropped_messages, report.replayed)
    headers = _begun_headers(begun, request_id)
    if report.cost_usd is not None and not report.replayed:
        headers[f"{_PREFIX}cost-usd"] = f"{report.cost_usd:.9f}"
    return headers


def _model_object(model: str) -> dict[str, object]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "routecast"}
