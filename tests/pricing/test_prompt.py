"""Reading the prompt out of requests of every API."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from pricing.prompt import Prompt, Turn, read_prompt

if TYPE_CHECKING:
    from tests.pricing.conftest import Exchange


def _prompt(api: str, document: Any) -> Prompt:
    return read_prompt(api, json.dumps(document).encode())


def _texts(prompt: Prompt) -> list[str]:
    return [*(text for turn in prompt.turns for text in turn.texts), *prompt.texts]


def test_of_a_cut_request_what_is_there_is_read() -> None:
    body = b'{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"abc def'
    prompt = read_prompt("openai.chat", body, tail=b' end"}]}', size=10_000)
    assert prompt.texts == ("abc def",)
    assert prompt.kept < 0.01


@pytest.mark.parametrize(
    ("api", "document", "texts"),
    [
        ("openai.chat", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None,
         "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "content": "r"}]},
         ["a", "f", "{}", "r"]),
        ("openai.completions", {"prompt": ["a", "b"], "suffix": "c"}, ["a", "b", "c"]),
        ("openai.embeddings", {"input": ["a", "b"]}, ["a", "b"]),
        ("openai.responses", {"instructions": "s", "input": "a"}, ["s", "a"]),
        ("openai.responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}, ["a"]),
        ("anthropic.messages", {"system": [{"type": "text", "text": "s"}], "messages": [{"role": "user", "content": [
            {"type": "text", "text": "a"}, {"type": "tool_use", "name": "f", "input": {"x": 1}},
            {"type": "tool_result", "content": [{"type": "text", "text": "r"}]}]}]}, ["s", "a", '{"x":1}', "r"]),
        ("gemini.generate", {"systemInstruction": {"parts": [{"text": "s"}]}, "contents": [{"role": "user", "parts": [
            {"text": "a"}, {"functionCall": {"name": "f", "args": {"x": 1}}}]}]}, ["s", "a", "f", '{"x":1}']),
        ("gemini.embed", {"requests": [{"content": {"parts": [{"text": "a"}]}}, {"content": {"parts": [
            {"text": "b"}]}}]}, ["a", "b"]),
        ("cohere.chat", {"preamble": "s", "message": "a", "chat_history": [{"role": "USER", "message": "b"}]},
         ["s", "b", "a"]),
        ("rerank", {"query": "q", "documents": ["a", {"text": "b"}]}, ["q", "a", "b"]),
        ("bedrock.converse", {"system": [{"text": "s"}], "messages": [{"role": "user", "content": [{"text": "a"},
            {"toolUse": {"name": "f", "input": {"x": 1}}}, {"toolResult": {"content": [{"text": "r"}]}}]}]},
         ["s", "a", "f", '{"x":1}', "r"]),
        ("bedrock.invoke", {"inputText": "a"}, ["a"]),
        ("other", {"instances": [{"content": "a"}]}, ["a"]),
    ],
)  # fmt: skip
def test_the_prompt_is_read_in_each_apis_shape(api: str, document: Any, texts: list[str]) -> None:
    assert _texts(_prompt(api, document)) == texts


def test_turns_keep_role_and_name() -> None:
    prompt = _prompt("openai.chat", {"messages": [{"role": "user", "name": "ann", "content": "a"}]})
    assert prompt.turns == (Turn("user", "ann", ("a",)),)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://x/y"}},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
        {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"image": {"format": "png", "source": {"bytes": "AAAA"}}},
    ],
)
def test_an_image_is_counted_and_its_bytes_are_no_text(part: dict[str, Any]) -> None:
    name = "parts" if "inlineData" in part else "content"
    prompt = _prompt("other", {"messages": [{"role": "user", name: [part]}]})
    assert prompt.images == 1
    assert _texts(prompt) == []


@pytest.mark.parametrize(
    "document",
    [
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}]},
        {"input": "a", "previous_response_id": "resp_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"input": [{"type": "reasoning", "encrypted_content": "xyz"}]},
    ],
)
def test_what_no_text_stands_for_is_noticed(document: Any) -> None:
    assert _prompt("openai.responses", document).others > 0


def test_inputs_given_as_tokens_are_counted_as_they_are() -> None:
    assert _prompt("openai.embeddings", {"input": [[1, 2, 3], [4]]}).token_ids == 4


def test_no_bytes_make_it_raise(exchanges: list[Exchange]) -> None:
    chance = random.Random(5)
    requests = [exchange for exchange in exchanges if 2 < len(exchange.request) < 20_000]
    for _ in range(2_000):
        exchange = chance.choice(requests)
        body = bytearray(exchange.request)
        for _ in range(chance.randrange(4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        piece = bytes(body[: chance.randrange(len(body))]) if chance.random() < 0.5 else bytes(body)
        read_prompt(exchange.api, piece, tail=chance.choice((b"", b"abc")))
    for nothing in (b"", b"null", b"[]", b"3", b"[" * 100_000, b'{"messages":' * 5_000):
        assert not read_prompt("openai.chat", nothing)


def test_content_nested_without_end_is_left() -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    assert _texts(_prompt("other", {"messages": [{"role": "user", "content": deep}]})) == []
