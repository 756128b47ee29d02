"""Which API a call speaks, told from its provider's shape and its path."""

import re
from functools import lru_cache
from typing import Literal

Shape = Literal["openai", "anthropic", "gemini", "bedrock", "cohere"]

# First match wins. Paths are matched on their end, since providers put prefixes of their own before them
# (`/openai/deployments/x/chat/completions`, `/api/v1/chat/completions`).
_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), api)
    for pattern, api in [
        (r"/threads/", "other"),
        (r"/chat/completions/?$", "openai.chat"),
        (r"/responses(/[^/]+)?/?$", "openai.responses"),
        (r"/messages/?$", "anthropic.messages"),
        (r"/publishers/anthropic/.*:(streamRawPredict|rawPredict)$", "anthropic.messages"),
        (r":streamGenerateContent$", "gemini.stream"),
        (r":generateContent$", "gemini.generate"),
        (r":(embedContent|batchEmbedContents)$", "gemini.embed"),
        (r"/model/[^/]+/converse$", "bedrock.converse"),
        (r"/model/[^/]+/converse-stream$", "bedrock.converse_stream"),
        (r"/model/[^/]+/invoke$", "bedrock.invoke"),
        (r"/model/[^/]+/invoke-with-response-stream$", "bedrock.invoke_stream"),
        (r"/images/(generations|edits|variations)/?$", "openai.images"),
        (r"/rerank/?$", "rerank"),
        (r"(?<!/chat)/completions/?$", "openai.completions"),
    ]
]
_COHERE_CHAT = re.compile(r"/v[12]/chat/?$")
_EMBED = re.compile(r"/(embeddings?|embed)/?$")
_OPENAI_EMBED = re.compile(r"/embeddings/?$")


_REMEMBERED_LENGTH = 256
"""Longer paths are looked at each time: what strangers send must not fill the memory."""


def api_of(shape: str, path: str) -> str:
    """The API's slug (`openai.chat`, `anthropic.messages`, …); `other` where nothing is known of the path.

    Args:
        shape: the provider's own API shape in the catalogue.
        path: without its query.
    """
    return _remembered_api(shape, path) if len(path) <= _REMEMBERED_LENGTH else _api_of(shape, path)


def _api_of(shape: str, path: str) -> str:
    if shape == "cohere" and _COHERE_CHAT.search(path):
        return "cohere.chat"
    if _EMBED.search(path):
        return "openai.embeddings" if shape == "openai" and _OPENAI_EMBED.search(path) else "embed"
    for pattern, api in _RULES:
        if pattern.search(path):
            return api
    return "other"


_remembered_api = lru_cache(maxsize=4096)(_api_of)

_GEMINI_MODEL = re.compile(r"/models/([^/:]+)(?::|$)")
_BEDROCK_MODEL = re.compile(r"/model/([^/]+)/(?:converse|invoke)")
_AZURE_MODEL = re.compile(r"/deployments/([^/]+)/")


def model_in_path(path: str) -> str | None:
    """The model a path names, for the APIs that put it there (Gemini, Bedrock, Azure deployments)."""
    for pattern in (_GEMINI_MODEL, _BEDROCK_MODEL, _AZURE_MODEL):
        if found := pattern.search(path):
            return found[1].replace("%3A", ":").replace("%3a", ":")
    return None


_MANAGES = re.compile(r"[/:]cancel/?$|/chat/completions/chatcmpl[^/]*/?$")
"""POSTs that stop a generation or change what is written beside a stored answer."""


def is_of_stored(method: str, path: str) -> bool:
    """Whether a call only reads or manages what another call had generated: what it answers was used by that one."""
    return method in ("GET", "DELETE") or (method == "POST" and _MANAGES.search(path) is not None)
