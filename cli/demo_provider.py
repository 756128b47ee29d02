"""The demo's own provider: speaks OpenAI's and Anthropic's APIs, plain and streamed, with believable times and counts.

Its answers are made up, and it says so in them; their shapes and usage are what those providers send.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_SENTENCES = [
    "This answer comes from Heliograph's demo provider.",
    "The tracking number has been sent to the address on file.",
    "A refund takes three to five working days once it is approved.",
    "In short, the second option costs less and needs one change.",
    "Here is a summary of the meeting, with the open points at the end.",
    "The function returns early when the list is empty, so the loop never runs.",
    "Two of the three invoices match; the last one differs by the freight.",
]
_SNAPSHOTS = {
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "o4-mini": "o4-mini-2025-04-16",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
}
_TOKENS_PER_S = {"gpt-4o": 90, "gpt-4o-mini": 130, "gpt-4.1": 80, "o4-mini": 110, "claude-sonnet-4-5": 70}


class DemoProvider:
    """An ASGI application. Each answer depends only on the seed and on how many came before."""

    def __init__(self, *, seed: int, hurry: float = 1.0) -> None:
        self._random = random.Random(seed)  # noqa: S311 - for show
        self._hurry = hurry
        """Divides every waiting time."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        call = json.loads(await _body(receive))
        path: str = scope["path"]
        trouble = self._random.random()
        await self._wait(self._random.lognormvariate(-1.2, 0.5))
        if trouble < 0.025:
            await _answer(send, 429, _error(path, "rate_limit_exceeded", "Rate limit reached for requests (demo)."))
        elif trouble < 0.04:
            await _answer(send, 500, _error(path, "server_error", "The server had an error (demo)."))
        elif path.endswith("/embeddings"):
            await _answer(send, 200, self._embedding(call))
        elif path.endswith("/messages"):
            await self._anthropic(send, call)
        else:
            await self._openai(send, call)

    async def _openai(self, send: Send, call: dict[str, Any]) -> None:
        model, text = call["model"], self._text()
        usage = self._openai_usage(call, text)
        if not call.get("stream"):
            await self._wait(usage["completion_tokens"] / _TOKENS_PER_S.get(model, 100))
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            await _answer(send, 200, {**_chat(model, "chat.completion"), "choices": [choice], "usage": usage})
            return
        events = self._openai_events(
            model, text, usage if call.get("stream_options", {}).get("include_usage") else None
        )
        await _stream(send, events)

    async def _openai_events(self, model: str, text: str, usage: dict[str, Any] | None) -> AsyncIterator[str]:
        chunk = _chat(model, "chat.completion.chunk")
        for word in _words(text):
            delta = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            yield f"data: {json.dumps({**chunk, 'choices': [delta]})}\n\n"
            await self._wait(1.3 / _TOKENS_PER_S.get(model, 100))
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        yield f"data: {json.dumps({**chunk, 'choices': [end]})}\n\n"
        if usage is not None:
            yield f"data: {json.dumps({**chunk, 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    def _openai_usage(self, call: dict[str, Any], text: str) -> dict[str, Any]:
        sent = len(json.dumps(call["messages"])) // 4 + self._random.randrange(20, 900)
        reasoning = self._random.randrange(64, 1200, 64) if call["model"].startswith("o") else 0
        produced = len(text) // 4 + 1 + reasoning
        cached = sent // 128 * 128 if self._random.random() < 0.3 and sent > 512 else 0
        return {
            "prompt_tokens": sent,
            "completion_tokens": produced,
            "total_tokens": sent + produced,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
        }

    async def _anthropic(self, send: Send, call: dict[str, Any]) -> None:
        model, text = call["model"], self._text()
        answered = _SNAPSHOTS.get(model, model)
        read = self._random.randrange(500, 4000) if self._random.random() < 0.4 else 0
        usage = {
            "input_tokens": len(json.dumps(call["messages"])) // 4 + self._random.randrange(20, 500),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": read,
            "output_tokens": len(text) // 4 + 1,
        }
        message = {
            "id": "msg_demo", "type": "message", "role": "assistant", "model": answered,
            "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": None, "usage": usage,
        }  # fmt: skip
        if not call.get("stream"):
            await self._wait(usage["output_tokens"] / 70)
            await _answer(send, 200, message)
            return
        await _stream(send, self._anthropic_events(message, text, usage))

    async def _anthropic_events(self, message: dict[str, Any], text: str, usage: dict[str, Any]) -> AsyncIterator[str]:
        begun = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        yield _event("message_start", {"message": begun})
        yield _event("content_block_start", block)
        for word in _words(text):
            yield _event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": word}})
            await self._wait(1.3 / 70)
        yield _event("content_block_stop", {"index": 0})
        ending = {"stop_reason": "end_turn", "stop_sequence": None}
        yield _event("message_delta", {"delta": ending, "usage": {"output_tokens": usage["output_tokens"]}})
        yield _event("message_stop", {})

    def _embedding(self, call: dict[str, Any]) -> dict[str, Any]:
        tokens = len(call["input"]) // 4 + 1
        vector = [round(self._random.uniform(-0.1, 0.1), 6) for _ in range(64)]
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": vector}],
            "model": call["model"],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def _text(self) -> str:
        return " ".join(self._random.sample(_SENTENCES, self._random.randrange(1, 6)))

    async def _wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._hurry)


def _chat(model: str, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-demo", "object": kind, "created": 0, "model": _SNAPSHOTS.get(model, model)}


def _words(text: str) -> list[str]:
    return [word + " " for word in text.split()]


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"


def _error(path: str, code: str, message: str) -> dict[str, Any]:
    if path.endswith("/messages"):
        kind = "rate_limit_error" if code == "rate_limit_exceeded" else "api_error"
        return {"type": "error", "error": {"type": kind, "message": message}}
    return {"error": {"message": message, "type": code, "param": None, "code": code}}


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    data = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def _stream(send: Send, events: AsyncIterator[str]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    async for event in events:
        await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
