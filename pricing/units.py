"""What can be priced: one unit for each class of usage, and which unit is a part of which.

Names, scales and dimensions are genai-prices' own (a test compares them), so that its prices can be taken as they
are. A unit is a part of another when it has all the other's dimensions and more: cached audio is a part of cached
input, of audio input, and of input.
"""

from typing import NamedTuple

_TOKENS = 1_000_000


class Unit(NamedTuple):
    price_key: str
    """Name of its price in genai-prices."""
    per: int
    """How many the price is for."""
    dimensions: dict[str, str]
    field: str
    """Where `Usage` counts it; empty for the request itself."""


def _tokens(direction: str, *, kind: str | None = None, **dimensions: str) -> dict[str, str]:
    if kind is not None:
        dimensions["token_type"] = kind
    return {"family": "tokens", "direction": direction, **dimensions}


UNITS: dict[str, Unit] = {
    "input_tokens": Unit("input_mtok", _TOKENS, _tokens("input"), "input_tokens"),
    "output_tokens": Unit("output_mtok", _TOKENS, _tokens("output"), "output_tokens"),
    "cache_read_tokens": Unit("cache_read_mtok", _TOKENS, _tokens("input", kind="cache_read"), "cache_read_tokens"),
    "cache_write_tokens": Unit("cache_write_mtok", _TOKENS, _tokens("input", kind="cache_write"), "cache_write_tokens"),
    "cache_write_1h_tokens": Unit(
        "cache_write_1h_mtok",
        _TOKENS,
        _tokens("input", kind="cache_write", cache_ttl="1h"),
        "cache_write_1h_tokens",
    ),
    "input_tool_tokens": Unit("input_tool_mtok", _TOKENS, _tokens("input", kind="tool"), "input_tool_tokens"),
    "output_reasoning_tokens": Unit(
        "output_reasoning_mtok", _TOKENS, _tokens("output", kind="reasoning"), "reasoning_tokens"
    ),
    "output_citation_tokens": Unit(
        "output_citation_mtok", _TOKENS, _tokens("output", kind="citation"), "citation_tokens"
    ),
    **{
        f"{direction}_{modality}_tokens": Unit(
            f"{direction}_{modality}_mtok",
            _TOKENS,
            _tokens(direction, modality=modality),
            f"{direction}_{modality}_tokens",
        )
        for direction in ("input", "output")
        for modality in ("audio", "image", "video")
    },
    **{
        f"cache_{modality}_read_tokens": Unit(
            f"cache_{modality}_read_mtok",
            _TOKENS,
            _tokens("input", modality=modality, kind="cache_read"),
            f"cache_{modality}_read_tokens",
        )
        for modality in ("audio", "image", "video")
    },
    "audio_seconds": Unit("audio_hours", 3600, {"family": "durations", "modality": "audio"}, "audio_seconds"),
    "input_audio_seconds": Unit(
        "input_audio_hours",
        3600,
        {"family": "durations", "direction": "input", "modality": "audio"},
        "audio_seconds",
    ),
    "input_characters": Unit(
        "input_mchars", 1_000_000, {"family": "characters", "direction": "input"}, "input_characters"
    ),
    "input_document_pages": Unit(
        "input_document_kpages", 1000, {"family": "document_pages", "direction": "input"}, "document_pages"
    ),
    "rerank_searches": Unit("rerank_searches_kcount", 1000, {"family": "rerank"}, "rerank_searches"),
    "web_searches": Unit(
        "web_searches_kcount", 1000, {"family": "tool_calls", "tool_type": "web_search"}, "web_searches"
    ),
    "storage_searches": Unit(
        "storage_searches_kcount",
        1000,
        {"family": "tool_calls", "tool_type": "storage_search"},
        "storage_searches",
    ),
    "requests": Unit("requests_kcount", 1000, {"family": "requests"}, ""),
}


def is_part(whole: str, part: str) -> bool:
    """Whether `part`'s count is contained in `whole`'s."""
    return whole != part and UNITS[whole].dimensions.items() <= UNITS[part].dimensions.items()
