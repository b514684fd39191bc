"""Unmodified Python clients against the edge: OpenAI's SDK, sync and async, and LangChain. Behind it are two providers
played by llmock; every test runs once in good times and once with the first of them down (F-02, F-17).
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pydantic
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from service.config_file import load
from service.main import running
from tests.e2e.judge import Judge, judging
from tests.service_under_test import Client, connected, write_config

CHAT, EMBED = "house/chat", "house/embed"
OUTAGE = {"type": "fail", "status": 503, "times": None}
DEADLINE_S = 30.0
ASKED: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
LOOK: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Invoice(pydantic.BaseModel):
    """What a structured answer has to be."""

    customer: str
    amount: float


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"21 degrees in {city}"


@pytest.fixture(scope="module")
def judges() -> Iterator[tuple[str, str]]:
    with judging() as first, judging() as second:
        yield first, second


@pytest.fixture(params=["calm", "outage"])
async def edge(request: pytest.FixtureRequest, judges: tuple[str, str], tmp_path: Path) -> AsyncIterator[Client]:
    endpoints = [{"provider": name, "provider_model": "gpt-4o"} for name in ("first", "second")]
    capabilities = ["chat", "streaming", "tools", "vision", "responses"]
    tree = {
        "server": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "drain_s": 5},
        "data_dir": str(tmp_path / "data"),
        "providers": [
            {"name": name, "base_url": f"{url}/v1"} for name, url in zip(("first", "second"), judges, strict=True)
        ],
        "models": [
            {"id": CHAT, "capabilities": capabilities, "endpoints": endpoints},
            {"id": EMBED, "capabilities": ["embeddings"], "endpoints": endpoints},
        ],
        "scoring": {"enabled": False},
    }
    async with AsyncExitStack() as stack:
        config = load(write_config(tmp_path / "routecast.yaml", tree))
        client = await connected(await stack.enter_async_context(running(config)), stack)
        for url in judges:
            await Judge(url, client.http).reset()
        if request.param == "outage":
            await Judge(judges[0], client.http).script(OUTAGE)
        yield client


@pytest.fixture
def sdk(edge: Client) -> openai.AsyncOpenAI:
    return edge.sdk.with_options(max_retries=2, timeout=DEADLINE_S)


@pytest.fixture
async def lang(edge: Client) -> AsyncIterator[ChatOpenAI]:
    async with _langchain(edge) as made:
        yield made


@asynccontextmanager
async def _langchain(edge: Client, **options: Any) -> AsyncIterator[ChatOpenAI]:
    """A chat model whose connections are closed at the end, which LangChain itself leaves to the interpreter."""
    made = ChatOpenAI(
        model=CHAT,
        base_url=f"{edge.url}/v1",
        api_key=pydantic.SecretStr("none"),
        timeout=DEADLINE_S,
        http_client=httpx.Client(),
        http_async_client=httpx.AsyncClient(),
        **options,
    )
    yield made
    made.root_client.close()
    await made.root_async_client.close()


async def test_openai_chat_whole_and_streamed(sdk: openai.AsyncOpenAI) -> None:
    whole = await sdk.chat.completions.create(model=CHAT, messages=ASKED)
    assert whole.choices[0].message.content
    assert whole.usage is not None
    text, usage = "", None
    options: Any = {"stream_options": {"include_usage": True}}
    async for chunk in await sdk.chat.completions.create(model=CHAT, messages=ASKED, stream=True, **options):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


async def test_openai_several_choices(sdk: openai.AsyncOpenAI) -> None:
    whole = await sdk.chat.completions.create(model=CHAT, messages=ASKED, n=3)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    finished = set()
    async for chunk in await sdk.chat.completions.create(model=CHAT, messages=ASKED, n=3, stream=True):
        finished |= {choice.index for choice in chunk.choices if choice.finish_reason}
    assert finished == {0, 1, 2}


async def test_openai_a_tool_is_called_and_answered(sdk: openai.AsyncOpenAI) -> None:
    asked = [*ASKED, {"role": "user", "content": "What is the weather in Oslo?"}]
    first = await sdk.chat.completions.create(model=CHAT, messages=asked, tools=[LOOK])
    assert first.choices[0].finish_reason == "tool_calls"
    called = first.choices[0].message.tool_calls
    assert called is not None
    (call,) = called
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    told: Any = [*asked, first.choices[0].message.model_dump(exclude_none=True), result]
    second = await sdk.chat.completions.create(model=CHAT, messages=told, tools=[LOOK])
    assert second.choices[0].finish_reason == "stop"

    name, arguments = "", ""
    async with sdk.chat.completions.stream(model=CHAT, messages=asked, tools=[LOOK]) as events:
        async for event in events:
            if event.type == "tool_calls.function.arguments.delta":
                name, arguments = event.name, arguments + event.arguments_delta
    assert (name, arguments[:1]) == ("weather", "{")


async def test_openai_structured_answers(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.parse(model=CHAT, messages=ASKED, response_format=Invoice)
    assert isinstance(answer.choices[0].message.parsed, Invoice)


async def test_openai_embeddings_and_models(sdk: openai.AsyncOpenAI) -> None:
    answered = await sdk.embeddings.create(model=EMBED, input=["a", "b"])
    assert [type(each.embedding[0]) for each in answered.data] == [float, float]
    assert {model.id for model in (await sdk.models.list()).data} == {CHAT, EMBED}
    assert (await sdk.models.retrieve(CHAT)).id == CHAT


async def test_openai_responses_whole_and_streamed(sdk: openai.AsyncOpenAI) -> None:
    whole = await sdk.responses.create(model=CHAT, input="hello")
    async with sdk.responses.stream(model=CHAT, input="hello") as events:
        async for _ in events:
            pass
        streamed = await events.get_final_response()
    assert whole.output_text
    assert streamed.output_text == whole.output_text


async def test_openai_errors_have_their_classes(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await sdk.chat.completions.create(model="gpt-9", messages=ASKED)
    assert unknown.value.code == "model_not_found"
    assert unknown.value.request_id
    with pytest.raises(openai.BadRequestError) as wrong:
        await sdk.chat.completions.create(model=CHAT, messages=[])
    assert wrong.value.param == "messages"
    with pytest.raises(openai.BadRequestError):
        await sdk.embeddings.create(model=CHAT, input="x")


async def test_openai_from_threads_without_asyncio(edge: Client) -> None:
    def ask(number: int) -> str:
        with openai.OpenAI(base_url=f"{edge.url}/v1", api_key="none", timeout=DEADLINE_S) as sdk:
            messages: Any = [{"role": "user", "content": f"number {number}"}]
            chunks = sdk.chat.completions.create(model=CHAT, messages=messages, stream=True)
            return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)

    answers = await asyncio.gather(*(asyncio.to_thread(ask, number) for number in range(8)))
    assert all(answers)


async def test_langchain_invokes_streams_and_batches(lang: ChatOpenAI) -> None:
    messages = [SystemMessage("Be brief."), HumanMessage("hello")]
    whole = await lang.ainvoke(messages)
    assert isinstance(whole, AIMessage)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0
    streamed = "".join([str(chunk.content) async for chunk in lang.astream(messages)])
    assert streamed == whole.content
    batch = await lang.abatch([[HumanMessage(f"number {number}")] for number in range(5)])
    assert all(answer.content for answer in batch)
    assert (await asyncio.to_thread(lang.invoke, messages)).content == whole.content


async def test_langchain_calls_tools(lang: ChatOpenAI) -> None:
    bound = lang.bind_tools([weather])
    asked: list[Any] = [HumanMessage("What is the weather in Oslo?")]
    called = await bound.ainvoke(asked)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    assert call["name"] == "weather"
    result = await weather.ainvoke(call)
    assert isinstance(result, ToolMessage)
    assert (await bound.ainvoke([*asked, called, result])).content


async def test_langchain_structured_answers(lang: ChatOpenAI) -> None:
    method: Any
    for method in ("json_schema", "function_calling"):
        answer = await lang.with_structured_output(Invoice, method=method).ainvoke("the invoice")
        assert isinstance(answer, Invoice)


async def test_langchain_speaks_responses(edge: Client) -> None:
    async with _langchain(edge, use_responses_api=True) as lang:
        whole = await lang.ainvoke("hello")
        streamed = "".join([chunk.text async for chunk in lang.astream("hello")])
    assert whole.text
    assert streamed == whole.text


async def test_langchain_embeds(edge: Client) -> None:
    async with httpx.AsyncClient() as http:
        # Without counting tokens by itself, which would fetch a vocabulary.
        embeddings = OpenAIEmbeddings(
            model=EMBED,
            base_url=f"{edge.url}/v1",
            api_key=pydantic.SecretStr("none"),
            check_embedding_ctx_length=False,
            http_async_client=http,
        )
        vectors = await embeddings.aembed_documents(["a", "b"])
    assert len(vectors) == 2
    assert len(vectors[0]) == len(vectors[1]) > 0
