"""RouterService: each method converts, calls the engine's shell or the completer, and converts back."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from routecast.v1 import router_pb2, router_pb2_grpc

from analytics.records import RequestRecord
from routing.actions import Finished
from routing.errors import UnknownEndpointError
from routing.model import Endpoint
from routing.scorers import WEIGHTS
from service.callers import ANYBODY, Caller, Callers
from service.completion import Begun, Continued, Report
from service.errors import InvalidRequestError, NotFoundError, ServiceError, Violation
from service.explain import summary
from service.history import AttemptSink, attempt_record
from service.providers.base import Chunk
from service.refusals import refusal
from service.request_id import request_id
from service.router import Decided, Router, unknown_decision
from service.rpc import convert, requests
from service.rpc.status import abort
from service.serving import Serving

_ADVICE_S = 5.0
_PAGE, _MAX_PAGE = 100, 1000


class RouterService(router_pb2_grpc.RouterServiceServicer):
    """See protos/routecast/v1/router.proto for what each method promises. `base_urls` are by provider name."""

    def __init__(
        self,
        router: Router,
        serving: Serving,
        callers: Callers,
        record: AttemptSink,
        base_urls: Mapping[str, str],
        replica: str,
    ) -> None:
        self._router = router
        self._serving = serving
        self._callers = callers
        self._record = record
        self._base_urls = base_urls
        self._replica = replica

    async def Route(self, request: router_pb2.RouteRequest, context: Any) -> router_pb2.RouteResponse:  # noqa: N802  # gRPC
        """Advise."""
        started = self._router.clock.now()
        try:
            route = self._caller(context).asks(requests.route_request(request))
            decided = self._router.decide(route, _request_id(context))
            if decided.decision.chosen is None:
                raise refusal(decided.decision)  # one way out for all errors
        except ServiceError as error:
            await abort(context, error)
        decision = decided.decision
        ordered = sorted(
            (c for c in decision.considered if not c.exclusion), key=lambda c: c.candidate is not decision.chosen
        )
        now = self._router.clock.now()
        self._record(_advice(decided, self._replica, now, now - started))
        return router_pb2.RouteResponse(
            decision_id=decided.id,
            snapshot_version=decision.snapshot_version,
            candidates=[convert.candidate_to_proto(c, self._base_url(c.candidate.facts.endpoint)) for c in ordered],
            expire_time=convert.timestamp(now + _ADVICE_S),
        )

    async def ReportOutcome(  # noqa: N802  # gRPC
        self, request_iterator: AsyncIterator[router_pb2.ReportOutcomeRequest], context: Any
    ) -> router_pb2.ReportOutcomeResponse:
        """Take feedback on advised calls."""
        accepted = 0
        try:
            caller = self._caller(context)
        except ServiceError as error:
            await abort(context, error)
        async for report in request_iterator:
            try:
                self._take(report, f"reports[{accepted}]", caller)
            except ServiceError as error:
                await abort(context, error)
            accepted += 1
        return router_pb2.ReportOutcomeResponse(accepted=accepted)

    async def Complete(  # noqa: N802  # gRPC
        self, request: router_pb2.CompleteRequest, context: Any
    ) -> router_pb2.CompleteResponse:
        """Serve a chat completion."""
        try:
            caller = self._caller(context)
            completion = requests.chat_completion(
                request.chat,
                request.routing,
                stream=False,
                request_id=_request_id(context),
                timeout_s=context.time_remaining(),
                idempotency_key=request.idempotency_key,
                caller=caller,
            )
            served = await self._serving.complete(completion)
        except ServiceError as error:
            await abort(context, error)
        return convert.reply_to_proto(served.reply.body, served.report)

    async def StreamComplete(  # noqa: N802  # gRPC
        self, request: router_pb2.StreamCompleteRequest, context: Any
    ) -> AsyncIterator[router_pb2.StreamCompleteResponse]:
        """Serve a chat completion as a stream."""
        try:
            caller = self._caller(context)
            completion = requests.chat_completion(
                request.chat,
                request.routing,
                stream=True,
                request_id=_request_id(context),
                timeout_s=context.time_remaining(),
                idempotency_key=request.idempotency_key,
                caller=caller,
            )
            async with aclosing(self._serving.stream(completion)) as items:
                async for item in items:
                    match item:
                        case Begun():
                            await context.send_initial_metadata((("x-routecast-endpoint", item.endpoint.id),))
                        case Chunk():
                            yield router_pb2.StreamCompleteResponse(chunk=convert.chunk_to_proto(item))
                        case Continued():
                            yield router_pb2.StreamCompleteResponse(continued=convert.continued_to_proto(item))
                        case Report():
                            yield router_pb2.StreamCompleteResponse(report=convert.report_to_proto(item))
        except ServiceError as error:
            await abort(context, error)

    async def Embed(self, request: router_pb2.EmbedRequest, context: Any) -> router_pb2.EmbedResponse:  # noqa: N802  # gRPC
        """Serve embeddings."""
        try:
            completion = requests.embedding(
                request,
                request_id=_request_id(context),
                timeout_s=context.time_remaining(),
                caller=self._caller(context),
            )
            served = await self._serving.complete(completion)
        except ServiceError as error:
            await abort(context, error)
        return convert.embeddings_to_proto(served.reply.body, served.report)

    async def ListModels(  # noqa: N802  # gRPC
        self, request: router_pb2.ListModelsRequest, context: Any
    ) -> router_pb2.ListModelsResponse:
        """Page through the catalogue by model id; the token is the last id of the page before."""
        try:
            self._caller(context)
            if request.page_size < 0:
                raise InvalidRequestError(Violation("page_size", "expected 0 or more"))  # one way out for all errors
        except ServiceError as error:
            await abort(context, error)
        size = min(request.page_size or _PAGE, _MAX_PAGE)
        catalogue = self._router.engine.catalogue
        names = [model for model in sorted(catalogue.by_model) if model > request.page_token]
        states = {e: self._router.engine.health_of(e).state for e in catalogue.endpoints}
        return router_pb2.ListModelsResponse(
            models=[convert.model_to_proto(model, catalogue.by_model[model], states) for model in names[:size]],
            next_page_token=names[size - 1] if len(names) > size else "",
        )

    async def ExplainRoute(  # noqa: N802  # gRPC
        self, request: router_pb2.ExplainRouteRequest, context: Any
    ) -> router_pb2.ExplainRouteResponse:
        """Explain a past decision or a request that might be made."""
        try:
            caller = self._caller(context)
            match request.WhichOneof("subject"):
                case "decision_id":
                    decided = self._router.recall(request.decision_id)
                    if decided.decision.request.tenant != caller.tenant:
                        raise unknown_decision(request.decision_id)  # another tenant's is not to be told from none
                case "request":
                    decision = self._router.preview(caller.asks(requests.route_request(request.request)))
                    decided = self._router.unrecorded(decision)
                case _:
                    raise InvalidRequestError(Violation("subject", "expected decision_id or request"))  # the same
        except ServiceError as error:
            await abort(context, error)
        return self._explanation(decided)

    def _explanation(self, decided: Decided) -> router_pb2.ExplainRouteResponse:
        decision, engine = decided.decision, self._router.engine
        return router_pb2.ExplainRouteResponse(
            decision_id=decided.id,
            decide_time=convert.timestamp(decision.time),
            snapshot_version=decision.snapshot_version,
            model=decision.request.model,
            objective=convert.objective_to_proto(decision.request.objective),
            chosen_endpoint_id=decision.chosen.facts.endpoint.id if decision.chosen else "",
            candidates=[
                convert.candidate_to_proto(
                    c,
                    self._base_url(c.candidate.facts.endpoint),
                    decided.risk_reasons.get(c.candidate.facts.endpoint.id, ()),
                )
                for c in decision.considered
            ],
            draw=decision.draw,
            panic=decision.panic,
            thresholds={name: str(value) for name, value in (engine.thresholds() | decided.threshold).items()},
            weights=WEIGHTS[decision.request.objective],
            forecaster=decided.forecaster,
            summary=summary(decision, decided.risk_reasons),
        )

    def _caller(self, context: Any) -> Caller:
        if self._callers.are_anybody:
            return ANYBODY
        return self._callers.of(dict(context.invocation_metadata() or ()).get("authorization"))

    def _base_url(self, endpoint: Endpoint) -> str:
        return self._base_urls[endpoint.provider]

    def _take(self, report: router_pb2.ReportOutcomeRequest, field: str, caller: Caller) -> None:
        try:
            endpoint = self._router.engine.catalogue.endpoint(report.endpoint_id)
        except UnknownEndpointError as error:
            raise NotFoundError("UNKNOWN_ENDPOINT", f"{field}.endpoint_id: {error}") from error
        outcome = requests.outcome(report.outcome, f"{field}.outcome")
        if not report.HasField("latency"):
            raise InvalidRequestError(Violation(f"{field}.latency", "expected the duration of the call"))
        now = self._router.clock.now()
        latency_s = requests.seconds(report.latency, f"{field}.latency")
        started = report.start_time.ToMicroseconds() / 1e6 if report.HasField("start_time") else now - latency_s
        streamed = report.HasField("time_to_first_token")
        ttft_s = requests.seconds(report.time_to_first_token, f"{field}.time_to_first_token") if streamed else None
        if ttft_s is not None and ttft_s > latency_s:
            raise InvalidRequestError(Violation(f"{field}.time_to_first_token", "expected at most the latency"))
        limited = report.HasField("retry_after")
        retry_after_s = requests.seconds(report.retry_after, f"{field}.retry_after") if limited else None
        if report.output_tokens < 0:
            raise InvalidRequestError(Violation(f"{field}.output_tokens", "expected 0 or more"))
        started, generation_s = min(started, now), latency_s - ttft_s if ttft_s is not None else None
        attempt_id = self._router.started(endpoint, started, streamed=streamed)
        result = Finished(
            endpoint.id,
            attempt_id,
            outcome,
            ttft_s=ttft_s,
            reply_s=None if streamed else latency_s,
            output_tokens=report.output_tokens,
            generation_s=generation_s or 0.0,
            retry_after_s=retry_after_s,
            tenant=caller.tenant,
        )
        self._router.finished(endpoint, result, now)
        self._record(
            attempt_record(
                endpoint,
                replica=self._replica,
                kind="advised",
                outcome=outcome,
                started=started,
                now=now,
                latency_s=latency_s,
                streamed=streamed,
                decision_id=report.decision_id,
                tenant=caller.tenant,
                http_status=report.http_status or None,
                ttft_s=ttft_s,
                generation_s=generation_s,
                output_tokens=report.output_tokens or None,
            )
        )


def _request_id(context: Any) -> str:
    """Take the caller's x-request-id, or make one."""
    metadata = dict(context.invocation_metadata() or ())
    return request_id(metadata.get("x-request-id"))


def _advice(decided: Decided, replica: str, now: float, latency_s: float) -> RequestRecord:
    decision = decided.decision
    endpoint = decision.chosen.facts.endpoint if decision.chosen else None
    return RequestRecord(
        replica=replica,
        time=now,
        request_id=decided.request_id,
        edge="grpc",
        method="route",
        model=decision.request.model,
        agent=decision.request.agent,
        tenant=decision.request.tenant,
        session_id="",
        endpoint=endpoint.id if endpoint else "",
        provider=endpoint.provider if endpoint else "",
        region=endpoint.region if endpoint else "",
        status="ok" if endpoint else "NO_ENDPOINT",
        attempts=0,
        failed_over=False,
        ttft_ms=None,
        latency_ms=latency_s * 1e3,
        input_tokens=None,
        output_tokens=None,
        cost_usd=None,
    )
