"""Counting tokens where a provider did not: with the model family's own tokenizer, or as an estimate.

A count is exact when every token of it is known to be made this way: OpenAI's published encodings, its chat
overhead, no image, no reasoning that was billed and not shown. Everything else is an estimate and says so.
Bounded: at most `CHARS_MAX` characters of a call are tokenized, the rest is extrapolated.
"""

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any, NamedTuple, Protocol

import msgspec

from pricing.prompt import Prompt
from pricing.reading import text_of

CHARS_MAX = 400_000
"""About 20 ms of tokenizing, 70 of the slowest text there is."""
_PIECES_MAX = 20_000


class Count(NamedTuple):
    tokens: int
    is_exact: bool


class Family(NamedTuple):
    """How one family of models makes tokens."""

    encoding: str
    is_own: bool
    """Whether the encoding is the family's own, so that counts can be exact."""
    hides_reasoning: bool = False
    factor: float = 1.0
    """Tokens of the family for one of the encoding, measured over recorded answers."""


_CL100K, _O200K = "cl100k_base", "o200k_base"

# First match wins; names in lower case, without a router's prefix.
_FAMILIES: list[tuple[re.Pattern[str], Family]] = [
    (re.compile(pattern), family)
    for pattern, family in [
        (r"^(gpt-oss|openai/gpt-oss)", Family(_O200K, False)),
        (r"^gpt-5[.\d]*-chat", Family(_O200K, True)),
        (r"^(o1|o3|o4)(-|$)|^gpt-[5-9]|^codex-", Family(_O200K, True, hides_reasoning=True)),
        (r"^(gpt-4o|gpt-4\.1|gpt-4\.5|chatgpt-4o|gpt-audio|gpt-realtime)", Family(_O200K, True)),
        (r"^(gpt-4|gpt-3\.5-turbo|gpt-35-turbo)", Family(_CL100K, True)),
        (r"^text-embedding-(3|ada-002)", Family(_CL100K, True)),
        (r"^(davinci|babbage)[-:]?(002|2023)", Family(_CL100K, True)),
        (r"claude", Family(_O200K, False, factor=1.2)),
        (r"gemini|gemma", Family(_O200K, False, factor=1.0)),
        (r"llama|cohere|command|deepseek|qwen|glm", Family(_O200K, False, factor=1.05)),
        (r"mistral|mixtral|ministral|codestral|magistral|pixtral", Family(_O200K, False, factor=1.15)),
    ]
]
_ANY = Family(_O200K, False)
_PREFIX = re.compile(r"^(?:openai|azure|openrouter/openai)/|^ft:")


@lru_cache(maxsize=1024)
def family_of(model: str) -> Family:
    name = _PREFIX.sub("", model.lower())
    for pattern, family in _FAMILIES:
        if pattern.search(name):
            return family
    return _ANY


class _Encoding(Protocol):
    def count(self, text: str, /) -> int: ...


@cache
def _encoding(name: str) -> _Encoding | None:
    """The tokenizer, loaded at first use (0.3 s); `None` where its package is not installed (Python 3.14)."""
    try:
        from rs_bpe.bpe import openai
    except ImportError:
        return None
    loaded: _Encoding = openai.o200k_base() if name == _O200K else openai.cl100k_base()
    return loaded


def count_texts(family: Family, texts: Iterable[str]) -> Count:
    """Tokens of texts that stand apart from each other."""
    encoding = _encoding(family.encoding)
    exact = family.is_own and encoding is not None
    tokens, counted_chars, left_chars = 0, 0, 0
    for place, text in enumerate(texts):
        room = CHARS_MAX - counted_chars
        if room <= 0 or place >= _PIECES_MAX:
            left_chars += len(text)
            continue
        head = text[:room]
        left_chars += len(text) - len(head)
        counted_chars += len(head)
        tokens += _count(encoding, head)
    if left_chars:
        exact = False
        tokens += round(left_chars * (tokens / counted_chars if counted_chars else 0.25))
    return Count(tokens if exact else round(tokens * family.factor), exact)


def _count(encoding: _Encoding | None, text: str) -> int:
    if encoding is None:
        return (len(text) + 3) // 4
    try:
        return encoding.count(text)
    except UnicodeEncodeError:  # A lone half of a surrogate pair.
        return encoding.count(text.encode("utf-8", "replace").decode())


def count_output(model: str, output: Iterable[str]) -> Count:
    """Tokens of what came out. Reasoning that was billed but not shown makes it an estimate from below."""
    family = family_of(model)
    count = count_texts(family, output)
    return Count(count.tokens, count.is_exact and not family.hides_reasoning)


_TURN_TOKENS = 3
_NAME_TOKENS = 1
_REPLY_TOKENS = 3
_IMAGE_TOKENS = 765
"""One image of 1024 by 1024 in high detail (OpenAI's own example)."""


def count_prompt(model: str, prompt: Prompt) -> Count:
    """Tokens of a prompt, with what OpenAI's chat format adds to each message; tools are counted as it writes them
    out, which is known from experiment only."""
    family = family_of(model)
    texts = count_texts(family, (text for turn in prompt.turns for text in (turn.role or "", *turn.texts)))
    plain = count_texts(family, prompt.texts)
    tokens = texts.tokens + plain.tokens + prompt.token_ids
    exact = texts.is_exact and plain.is_exact
    if prompt.turns:
        tokens += _REPLY_TOKENS - family.hides_reasoning
        for turn in prompt.turns:
            tokens += _TURN_TOKENS
            if turn.name is not None:
                tokens += _NAME_TOKENS + count_texts(family, (turn.name,)).tokens
    if prompt.tools:
        tokens += count_texts(family, (_tool_text(tool) for tool in prompt.tools)).tokens + 9
        exact = False
    tokens += prompt.images * _IMAGE_TOKENS
    if prompt.images or prompt.others or prompt.kept < 1:
        exact = False
    if prompt.kept < 1:
        tokens = round(tokens / max(prompt.kept, 0.001))
    return Count(tokens, exact)


def _tool_text(tool: dict[str, Any]) -> str:
    """A tool as the model is shown it: its description and its parameters, as something like a type."""
    inner = tool.get("function") if isinstance(tool.get("function"), dict) else tool
    assert isinstance(inner, dict)
    parts = [text_of(inner.get("name") or ""), text_of(inner.get("description") or "")]
    schema = inner.get("parameters") or inner.get("input_schema") or inner.get("inputSchema")
    if schema is not None:
        parts.extend(_schema_texts(schema))
    elif inner is tool and "name" not in tool:
        parts.append(msgspec.json.encode(tool).decode())
    return "\n".join(part for part in parts if part)


def _schema_texts(schema: Any, depth: int = 0) -> list[str]:
    if not isinstance(schema, dict) or depth > 8:
        return []
    texts: list[str] = []
    properties = schema.get("properties")
    for name, value in properties.items() if isinstance(properties, dict) else ():
        kind = value.get("type", "any") if isinstance(value, dict) else "any"
        texts.append(f"{name}: {kind},")
        if isinstance(value, dict):
            if isinstance(value.get("description"), str):
                texts.append(f"// {value['description']}")
            texts.extend(_schema_texts(value, depth + 1))
            texts.extend(_schema_texts(value.get("items"), depth + 1))
    return texts
