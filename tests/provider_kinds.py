"""The kinds of providers that the conformance suite holds to one behaviour: how each is made, and its wire by hand.

The rule of this file: what a kind sends is written out as bytes here, apart from the simulated providers, so that two
mistakes would have to agree.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from service.providers.anthropic import AnthropicMessages
from service.providers.azure import AzureAddresses
from service.providers.base import Adapter
from service.providers.openai_compatible import OpenAICompatible
from service.providers.transport import Transport
from sim.scenario import WireFormat
from tests.wire_server import Script, chunk, head

KEY = "sk-very-secret-key"
HEADERS = {"X-Team": "team-secret-7"}
JSON = "Content-Type: application/json"


def _event(data: str, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + f"data: {data}\n\n".encode()


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of provider.

    Attributes:
        wire: the wire format of the simulated provider it is tested against.
        build: an adapter for a base URL and a key.
        target: the request target of a chat with model "gpt-4" and the query "beta=%7E1", below the base path.
        key: the header line that carries the key, its name in lower case.
        opening, token, ending: events of a stream: before the first token, one token of a text, all after the last.
        finish: the part of `ending` that makes the answer complete.
        whole: a whole answer of a text, with 3 tokens in and 2 out.
        blank: a whole answer, finished in good order, that says nothing.
        error: an error body of a type and a message.
        error_event: the same as an event of a stream.
        received: messages as the provider gets them.
    """

    wire: WireFormat
    build: Callable[[str, Transport, str], Adapter]
    target: str
    key: tuple[str, str]
    opening: bytes
    token: Callable[[str], bytes]
    finish: bytes
    ending: bytes
    whole: Callable[[str], bytes]
    blank: bytes
    error: Callable[[str, str], bytes]
    error_event: Callable[[str, str], bytes]
    received: Callable[[Sequence[dict[str, Any]]], Any]

    def __str__(self) -> str:
        return self.wire.value

    def make(self, url: str, transport: Transport, key: str = KEY) -> Adapter:
        """An adapter for a base URL."""
        return self.build(url, transport, key)

    def answering(self, text: str = "hi", *headers: str) -> Script:
        """A server that answers every request with a whole answer."""
        return responding(self.whole(text), *headers)

    def streaming(self, *events: bytes, ended: bool = True) -> Script:
        """A server that sends these events, and then ends the payload or falls silent."""
        start = head("Content-Type: text/event-stream", "Transfer-Encoding: chunked", "X-Hidden: 1")

        async def script(exchange: Any) -> None:
            await exchange.send(start, *(chunk(event) for event in events))
            if ended:
                await exchange.send(chunk(b""))
            else:
                await exchange.gone()

        return script


def responding(body: bytes, *headers: str, status: str = "200 OK") -> Script:
    """A server that answers every request alike, with JSON."""

    async def script(exchange: Any) -> None:
        await exchange.respond(body, JSON, *headers, status=status)

    return script


def _openai_token(text: str) -> bytes:
    return _event(json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}))


def _openai_whole(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode()


def _openai_error(kind: str, message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": kind}}).encode()


_OPENAI_FINISH = _event('{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
_OPENAI: dict[str, Any] = {
    "opening": _event('{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}'),
    "token": _openai_token,
    "finish": _OPENAI_FINISH,
    "ending": _OPENAI_FINISH + _event("[DONE]"),
    "whole": _openai_whole,
    "blank": _openai_whole(""),
    "error": _openai_error,
    "error_event": lambda kind, message: _event(_openai_error(kind, message).decode()),
    "received": list,
}
OPENAI = Kind(
    wire=WireFormat.OPENAI,
    build=lambda url, transport, key: OpenAICompatible(
        url, transport, api_key=key, headers=HEADERS, clock=lambda: 1_000.0
    ),
    target="/chat/completions?beta=%7E1",
    key=("authorization", f"Bearer {KEY}"),
    **_OPENAI,
)
AZURE = Kind(
    wire=WireFormat.AZURE,
    build=lambda url, transport, key: OpenAICompatible(
        url, transport, api_key=key, headers=HEADERS, addresses=AzureAddresses("2099-01-01"), clock=lambda: 1_000.0
    ),
    target="/openai/deployments/gpt-4/chat/completions?beta=%7E1&api-version=2099-01-01",
    key=("api-key", KEY),
    **_OPENAI,
)


def _messages_token(text: str) -> bytes:
    told = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return _event(json.dumps(told), "content_block_delta")


def _messages_whole(text: str) -> bytes:
    body = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
    said = [{"type": "text", "text": text}] if text else []
    return json.dumps({**body, "content": said, "usage": {"input_tokens": 3, "output_tokens": 2}}).encode()


def _messages_error(kind: str, message: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


def _messages_received(messages: Sequence[dict[str, Any]]) -> Any:
    return [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages]


_MESSAGES_FINISH = _event(
    '{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}', "message_delta"
)
ANTHROPIC = Kind(
    wire=WireFormat.ANTHROPIC,
    build=lambda url, transport, key: AnthropicMessages(
        url, transport, api_key=key, headers=HEADERS, clock=lambda: 1_000.0
    ),
    target="/v1/messages",
    key=("x-api-key", KEY),
    opening=_event(
        '{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"model":"m",'
        '"stop_reason":null,"usage":{"input_tokens":3,"output_tokens":1}}}',
        "message_start",
    )
    + _event(
        '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}', "content_block_start"
    )
    + _event('{"type":"ping"}', "ping"),
    token=_messages_token,
    finish=_event('{"type":"content_block_stop","index":0}', "content_block_stop") + _MESSAGES_FINISH,
    ending=_event('{"type":"content_block_stop","index":0}', "content_block_stop")
    + _MESSAGES_FINISH
    + _event('{"type":"message_stop"}', "message_stop"),
    whole=_messages_whole,
    blank=_messages_whole(""),
    error=_messages_error,
    error_event=lambda kind, message: _event(_messages_error(kind, message).decode(), "error"),
    received=_messages_received,
)
KINDS = (OPENAI, AZURE, ANTHROPIC)
