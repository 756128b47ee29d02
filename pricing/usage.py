"""What one call used, in one vocabulary for all providers.

Every number is what the provider said. `None` is what it did not say: a class it never mentions stays unknown,
it does not become 0. `input_tokens` holds everything that went in (cache reads and writes, audio, images),
`output_tokens` everything that came out (reasoning included), whatever the provider's own habit.
"""

from decimal import Decimal

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True, gc=False):
    """Counts by class. Classes that stand below `input_tokens` or `output_tokens` are parts of them."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    """All cache writes, those of `cache_write_1h_tokens` included."""
    cache_write_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    citation_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_audio_tokens: int | None = None
    cache_audio_read_tokens: int | None = None
    input_image_tokens: int | None = None
    output_image_tokens: int | None = None
    cache_image_read_tokens: int | None = None
    input_video_tokens: int | None = None
    output_video_tokens: int | None = None
    cache_video_read_tokens: int | None = None
    input_tool_tokens: int | None = None
    """What a provider's own tools (Gemini's search, code, URL context) put into the prompt."""
    audio_seconds: float | None = None
    """Where audio is billed by duration (transcription)."""
    input_characters: int | None = None
    document_pages: int | None = None
    web_searches: int | None = None
    storage_searches: int | None = None
    rerank_searches: int | None = None

    billed_input_tokens: int | None = None
    """What the provider charges where that is not what was used (Cohere's `billed_units`)."""
    billed_output_tokens: int | None = None
    declared_cost_usd: Decimal | None = None
    """The provider's own price for this call (OpenRouter's `cost`), in US dollars."""

    service_tier: str | None = None
    """As the provider answers it; it can change the price."""
    speed: str | None = None
    inference_geo: str | None = None

    def __bool__(self) -> bool:
        """Whether anything countable was said."""
        return (
            self.input_tokens is not None
            or self.output_tokens is not None
            or self.audio_seconds is not None
            or self.rerank_searches is not None
            or self.billed_input_tokens is not None
            or self.document_pages is not None
            or self.input_characters is not None
            or self.declared_cost_usd is not None
        )
