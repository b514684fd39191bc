"""Azure OpenAI's wire format as a resource speaks it: OpenAI's, at deployment paths, with content filter results.

The rule of this file: it is pure; what it adds to OpenAI's format is what Azure adds.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from sim import responses_wire
from sim.openai_wire import OpenAIWire, chat_answer, embeddings_answer, models_body, parse_chat, parse_embeddings
from sim.scenario import Model
from sim.wire import Answer, Request, StreamPlan, WireError, event, json_object

_DEPLOYMENT = re.compile(r"/openai/deployments/([^/]+)/(chat/completions|embeddings)")
_SAFE = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}


class AzureWire(OpenAIWire):
    """A resource whose deployments are named as the models are."""

    root = ""

    def __init__(self, provider: str, models: Mapping[str, Model]) -> None:
        super().__init__(provider, models)
        self._provider = provider
        self._models = models

    def answer(self, request: Request) -> Answer:
        """See `Wire.answer`."""
        if not request.query.get("api-version"):
            raise WireError(404, "Resource not found", code="404")
        if request.method == "POST" and (at := _DEPLOYMENT.fullmatch(request.path)):
            return self._deployed(at[1], at[2], request.body)
        match request.method, request.path:
            case "POST", "/openai/responses":
                return responses_wire.answer(request.body, self._models, self._provider)
            case "GET", "/openai/models":
                return Answer(lambda _id, _now: models_body(self._models, self._provider), immediate=True)
        raise WireError(404, "Resource not found", code="404")

    def authorised(self, request: Request, api_key: str) -> bool:
        """See `Wire.authorised`."""
        return request.headers.get("api-key") == api_key

    def _deployed(self, deployment: str, what: str, body: bytes) -> Answer:
        if deployment not in self._models:
            raise WireError(404, "The API deployment for this resource does not exist.", code="DeploymentNotFound")
        # The path says which model; the body's is not looked at.
        named = msgspec.json.encode(json_object(body) | {"model": deployment})
        if what == "embeddings":
            return embeddings_answer(parse_embeddings(named, self._models))
        answer = chat_answer(parse_chat(named, self._models, self._provider))
        stream = answer.stream
        return replace(answer, whole=_filtered(answer.whole), stream=_filtered_stream(stream) if stream else None)


def _filtered(whole: Callable[[str, int], bytes]) -> Callable[[str, int], bytes]:
    def made(answer_id: str, now: int) -> bytes:
        body: dict[str, Any] = msgspec.json.decode(whole(answer_id, now))
        for choice in body["choices"]:
            choice["content_filter_results"] = _SAFE
        return msgspec.json.encode(body | {"prompt_filter_results": _prompt()})

    return made


def _filtered_stream(stream: Callable[[str, int], StreamPlan]) -> Callable[[str, int], StreamPlan]:
    def made(answer_id: str, now: int) -> StreamPlan:
        plan = stream(answer_id, now)
        first = {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": _prompt()}
        return replace(plan, opening=event(first) + plan.opening)

    return made


def _prompt() -> list[dict[str, Any]]:
    return [{"prompt_index": 0, "content_filter_results": _SAFE}]
