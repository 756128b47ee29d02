"""The official SDKs, unchanged, with only their base_url swapped."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.house import Answer, House, Replay
from tests.exchanges import recorded

_KEY = "sk-planted-provider-key-e2e"
_TOOLS: Any = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
]
_TURNS: Any = [{"role": "user", "content": "hi"}]


def first(fits: Callable[[dict[str, Any]], bool]) -> tuple[dict[str, Any], Answer]:
    """The first recorded exchange of its kind, as an answer."""
    for raw in recorded():
        if fits(raw):
            body = raw["response_body"] or ""
            data = base64.b64decode(body) if raw.get("encoding") == "base64" else body.encode()
            content_type = raw["response_headers"].get("content-type", "application/json")
            return raw, Answer(raw["status"], {"content-type": content_type}, data, stream=bool(raw["stream"]))
    raise LookupError


def of(
    api: str, *, stream: bool = False, status: int = 200, text: str = "", provider: str = ""
) -> tuple[dict[str, Any], Answer]:
    return first(
        lambda raw: (
            raw["api"] == api
            and bool(raw["stream"]) == stream
            and raw["status"] == status
            and (not provider or raw["provider"] == provider)
            and text in (raw["response_body"] or "")
        )
    )


def usage_in(raw: dict[str, Any], *names: str) -> Any:
    return next(raw["usage"][name] for name in names if name in raw["usage"])


_USER = {"Helicone-User-Id": "sdk"}


@pytest.fixture
def sync_openai(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.edge}/v1", api_key=_KEY, max_retries=0, default_headers=_USER) as client:
        yield client


@pytest.fixture
async def async_openai(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{house.edge}/v1", api_key=_KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def sync_anthropic(house: House) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=house.edge, api_key=_KEY, max_retries=0, default_headers=_USER) as client:
        yield client


@pytest.fixture
async def async_anthropic(house: House) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=house.edge, api_key=_KEY, max_retries=0) as client:
        yield client


async def test_openai_chat(
    house: House, replay: Replay, sync_openai: openai.OpenAI, async_openai: openai.AsyncOpenAI
) -> None:
    raw, replay.next = of("openai.chat", provider="openai")
    create = sync_openai.chat.completions.with_raw_response.create
    answer = await asyncio.to_thread(create, model="gpt-4o", messages=_TURNS)
    assert answer.parse().model == raw["model_answered"]
    row = await asyncio.to_thread(house.row, answer.headers["helicone-id"])
    assert row["model"] == raw["model_answered"]
    assert row["usage"]["input_tokens"] == usage_in(raw, "prompt_tokens")
    assert row["usage"]["source"] == "reported"
    assert row["cost"]["usd"] is not None
    assert row["user_id"] == "sdk"
    assert (await async_openai.chat.completions.create(model="gpt-4o", messages=_TURNS)).model == raw["model_answered"]


async def test_openai_chat_stream(
    house: House, replay: Replay, sync_openai: openai.OpenAI, async_openai: openai.AsyncOpenAI
) -> None:
    _, replay.next = of("openai.chat", stream=True, provider="openai")

    def read() -> tuple[str, int]:
        with sync_openai.chat.completions.with_streaming_response.create(
            model="gpt-4o", messages=_TURNS, stream=True
        ) as answer:
            return answer.headers["helicone-id"], sum(1 for _ in answer.parse())

    id_, chunks = await asyncio.to_thread(read)
    assert chunks > 2
    row = await asyncio.to_thread(house.row, id_)
    assert row["stream"]
    assert row["first_token_ms"] is not None
    assert row["usage"]["output_tokens"]
    stream = await async_openai.chat.completions.create(model="gpt-4o", messages=_TURNS, stream=True)
    assert len([chunk async for chunk in stream]) == chunks


async def test_openai_tools(house: House, replay: Replay, async_openai: openai.AsyncOpenAI) -> None:
    _, replay.next = of("openai.chat", provider="openai", text='"tool_calls"')
    answer = await async_openai.chat.completions.create(model="gpt-4o", messages=_TURNS, tools=_TOOLS)
    assert answer.choices[0].message.tool_calls


async def test_openai_responses(house: House, replay: Replay, async_openai: openai.AsyncOpenAI) -> None:
    raw, replay.next = of("openai.responses", provider="openai")
    answer = await async_openai.responses.with_raw_response.create(model="gpt-4o", input="hi")
    assert answer.parse().model == raw["model_answered"]
    row = await asyncio.to_thread(house.row, answer.headers["helicone-id"])
    assert (row["api"], row["usage"]["input_tokens"]) == ("openai.responses", usage_in(raw, "input_tokens"))
    raw, replay.next = of("openai.responses", stream=True, provider="openai")
    stream = await async_openai.responses.create(model="gpt-4o", input="hi", stream=True)
    assert [event.type async for event in stream][-1] == "response.completed"


async def test_openai_embeddings(house: House, replay: Replay, async_openai: openai.AsyncOpenAI) -> None:
    raw, replay.next = of("openai.embeddings", provider="openai")
    answer = await async_openai.embeddings.with_raw_response.create(model="text-embedding-3-small", input="hi")
    assert answer.parse().data
    row = await asyncio.to_thread(house.row, answer.headers["helicone-id"])
    assert (row["usage"]["input_tokens"], row["usage"]["output_tokens"]) == (usage_in(raw, "prompt_tokens"), 0)


async def test_openai_files(house: House, replay: Replay, async_openai: openai.AsyncOpenAI) -> None:
    file = json.dumps(
        {
            "id": "file-1",
            "object": "file",
            "bytes": 9,
            "created_at": 1,
            "filename": "a.txt",
            "purpose": "batch",
            "status": "processed",
        }
    ).encode()
    replay.next = Answer(200, {"content-type": "application/json"}, file, stream=False)
    made = await async_openai.files.create(file=("a.txt", b"nine byte"), purpose="batch")
    assert made.id == "file-1"
    assert b"nine byte" in replay.requests[-1]
    replay.next = Answer(200, {"content-type": "application/octet-stream"}, bytes(range(256)), stream=False)
    assert (await async_openai.files.content("file-1")).content == bytes(range(256))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "BadRequestError"), (401, "AuthenticationError"), (403, "PermissionDeniedError"), (404, "NotFoundError"),
     (422, "UnprocessableEntityError"), (429, "RateLimitError"), (500, "InternalServerError")],
)  # fmt: skip
async def test_a_providers_error_is_the_sdks_own_class(
    house: House,
    replay: Replay,
    async_openai: openai.AsyncOpenAI,
    async_anthropic: anthropic.AsyncAnthropic,
    status: int,
    kind: str,
) -> None:
    body = b'{"error": {"message": "no", "type": "t", "code": "c"}}'
    replay.next = Answer(status, {"content-type": "application/json"}, body, stream=False)
    with pytest.raises(getattr(openai, kind)) as error:
        await async_openai.chat.completions.create(model="gpt-4o", messages=_TURNS)
    assert error.value.code == "c"
    replay.next = Answer(
        status,
        {"content-type": "application/json"},
        b'{"type": "error", "error": {"type": "t", "message": "no"}}',
        stream=False,
    )
    with pytest.raises(getattr(anthropic, kind)):
        await async_anthropic.messages.create(model="claude-haiku-4-5", max_tokens=10, messages=_TURNS)


async def test_our_own_refusal_is_the_sdks_own_class_too(house: House, replay: Replay) -> None:
    bad = {"Helicone-Cache-Enabled": "perhaps"}
    async with openai.AsyncOpenAI(
        base_url=f"{house.edge}/v1", api_key=_KEY, max_retries=0, default_headers=bad
    ) as client:
        with pytest.raises(openai.BadRequestError, match="Helicone-Cache-Enabled") as error:
            await client.chat.completions.create(model="gpt-4o", messages=_TURNS)
        assert error.value.code == "bad_header"
    async with anthropic.AsyncAnthropic(
        base_url=house.edge, api_key=_KEY, max_retries=0, default_headers=bad
    ) as client_a:
        with pytest.raises(anthropic.BadRequestError, match="Helicone-Cache-Enabled"):
            await client_a.messages.create(model="claude-haiku-4-5", max_tokens=10, messages=_TURNS)


async def test_anthropic_messages(
    house: House, replay: Replay, sync_anthropic: anthropic.Anthropic, async_anthropic: anthropic.AsyncAnthropic
) -> None:
    raw, replay.next = of("anthropic.messages", provider="anthropic", text='"stop_reason"')
    create = sync_anthropic.messages.with_raw_response.create
    answer = await asyncio.to_thread(create, model="claude-haiku-4-5", max_tokens=10, messages=_TURNS)
    assert answer.parse().model == raw["model_answered"]
    row = await asyncio.to_thread(house.row, answer.headers["helicone-id"])
    assert (row["provider"], row["api"], row["user_id"]) == ("anthropic", "anthropic.messages", "sdk")
    assert row["usage"]["output_tokens"] == raw["usage"]["output_tokens"]
    assert (await async_anthropic.messages.create(model="claude-haiku-4-5", max_tokens=10, messages=_TURNS)).model


async def test_anthropic_stream(
    house: House, replay: Replay, sync_anthropic: anthropic.Anthropic, async_anthropic: anthropic.AsyncAnthropic
) -> None:
    raw, replay.next = of("anthropic.messages", stream=True, provider="anthropic")

    def read() -> Any:
        with sync_anthropic.messages.stream(model="claude-haiku-4-5", max_tokens=10, messages=_TURNS) as stream:
            return stream.response.headers["helicone-id"], stream.get_final_message()

    id_, message = await asyncio.to_thread(read)
    assert message.usage.output_tokens == raw["usage"]["output_tokens"]
    row = await asyncio.to_thread(house.row, id_)
    assert row["usage"]["output_tokens"] == raw["usage"]["output_tokens"]
    assert row["stop_reason"] == raw["stop_reason"]
    async with async_anthropic.messages.stream(model="claude-haiku-4-5", max_tokens=10, messages=_TURNS) as stream:
        assert (await stream.get_final_message()).usage.output_tokens == raw["usage"]["output_tokens"]


async def test_anthropic_tools_and_files(
    house: House, replay: Replay, async_anthropic: anthropic.AsyncAnthropic
) -> None:
    _, replay.next = of("anthropic.messages", provider="anthropic", text='"tool_use"')
    tools: Any = [{"name": "get_weather", "input_schema": {"type": "object", "properties": {}}}]
    answer = await async_anthropic.messages.create(
        model="claude-haiku-4-5", max_tokens=10, messages=_TURNS, tools=tools
    )
    assert any(block.type == "tool_use" for block in answer.content)
    file = json.dumps(
        {"id": "file_1", "type": "file", "filename": "a.txt", "mime_type": "text/plain", "size_bytes": 9,
         "created_at": "2026-01-01T00:00:00Z"}
    ).encode()  # fmt: skip
    replay.next = Answer(200, {"content-type": "application/json"}, file, stream=False)
    made = await async_anthropic.beta.files.upload(file=("a.txt", b"nine byte", "text/plain"))
    assert made.id == "file_1"
    assert b"nine byte" in replay.requests[-1]


async def test_the_planted_key_is_nowhere(house: House, replay: Replay) -> None:
    """Runs last in this file: the keys of all calls above were this one."""
    assert house.files_with(_KEY) == []
