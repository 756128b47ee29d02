"""Gemini's generateContent and embeddings, at Google AI and on Vertex.

The prompt's count holds cached content but not what tools put in; the candidates' count holds no thoughts. Both are
added. Google leaves out counts that are 0, so a missing count beside `totalTokenCount` is worked out from it.
Every chunk of a stream repeats usage up to there; fields merge, the later word wins.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from pricing.reading import Answer, Block, Piece, Shape, error_of, text_of
from pricing.tolerant import ABSENT, Count, Tolerant, is_given
from pricing.usage import Usage


class Modality(msgspec.Struct, frozen=True):
    modality: str | None = None
    tokenCount: Count | None = None


class GeminiUsage(msgspec.Struct, frozen=True):
    promptTokenCount: Count | None = None
    cachedContentTokenCount: Count | None = None
    candidatesTokenCount: Count | None = None
    responseTokenCount: Count | None = None
    """The live API's name for candidates."""
    toolUsePromptTokenCount: Count | None = None
    thoughtsTokenCount: Count | None = None
    totalTokenCount: Count | None = None
    promptTokensDetails: list[Modality] | None = None
    promptTokenDetails: list[Modality] | None = None
    cacheTokensDetails: list[Modality] | None = None
    candidatesTokensDetails: list[Modality] | None = None
    responseTokensDetails: list[Modality] | None = None
    toolUsePromptTokensDetails: list[Modality] | None = None
    trafficType: str | None = None
    serviceTier: str | None = None


def usage_of(raw: GeminiUsage, *, embeds: bool = False) -> Usage | None:
    input_tokens, output_tokens = _sums(raw, embeds=embeds)
    tools, thoughts = raw.toolUsePromptTokenCount, raw.thoughtsTokenCount
    into = raw.promptTokensDetails or raw.promptTokenDetails or ()
    out = raw.candidatesTokensDetails or raw.responseTokensDetails or ()
    cached = raw.cacheTokensDetails or ()
    by_tools = raw.toolUsePromptTokensDetails or ()
    usage = Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=raw.cachedContentTokenCount,
        reasoning_tokens=thoughts,
        input_audio_tokens=_of(into, by_tools, kind="AUDIO"),
        output_audio_tokens=_of(out, kind="AUDIO"),
        cache_audio_read_tokens=_of(cached, kind="AUDIO"),
        input_image_tokens=_of(into, by_tools, kind="IMAGE"),
        output_image_tokens=_of(out, kind="IMAGE"),
        cache_image_read_tokens=_of(cached, kind="IMAGE"),
        input_video_tokens=_of(into, by_tools, kind="VIDEO"),
        output_video_tokens=_of(out, kind="VIDEO"),
        cache_video_read_tokens=_of(cached, kind="VIDEO"),
        input_tool_tokens=tools,
        service_tier=raw.serviceTier or raw.trafficType,
    )
    return usage if usage else None


def _sums(raw: GeminiUsage, *, embeds: bool) -> tuple[int | None, int | None]:
    """Tokens in and out. The total has the last word on what is counted within what, and on what is left out."""
    candidates = raw.candidatesTokenCount if raw.candidatesTokenCount is not None else raw.responseTokenCount
    thoughts, total = raw.thoughtsTokenCount or 0, raw.totalTokenCount
    into = None if raw.promptTokenCount is None else raw.promptTokenCount + (raw.toolUsePromptTokenCount or 0)
    out = None if candidates is None else candidates + thoughts
    if total is None:
        if out is None and into is not None and (embeds or thoughts):
            out = thoughts
    elif into is None:
        into = total - out if out is not None and total >= out else None
    elif out is None:
        out = total - into if total >= into else 0 if embeds else None
    elif candidates is not None and thoughts and total == into + candidates:
        out = candidates  # Thoughts are among them.
    elif total > into + out:
        out = total - into  # There were thoughts that nothing else names.
    return into, out


def _of(*lists: list[Modality] | tuple[()], kind: str) -> int | None:
    """Tokens of one modality. Where modalities are told and this is not among them, it is still not said."""
    found = None
    for details in lists:
        for entry in details:
            if entry.modality == kind and entry.tokenCount is not None:
                found = (found or 0) + entry.tokenCount
    return found


class Candidate(msgspec.Struct, frozen=True):
    finishReason: str | None = None


class Feedback(msgspec.Struct, frozen=True):
    blockReason: str | None = None


class Document(msgspec.Struct, frozen=True):
    candidates: list[Candidate] | None = None
    usageMetadata: GeminiUsage | None = None
    modelVersion: str | None = None
    promptFeedback: Feedback | None = None
    embedding: msgspec.Raw = ABSENT
    embeddings: msgspec.Raw = ABSENT
    error: Any = None


def _stop_reason(document: Document) -> str | None:
    for candidate in reversed(document.candidates or ()):
        if candidate.finishReason:
            return candidate.finishReason
    return None if document.promptFeedback is None else document.promptFeedback.blockReason


def read(document: Document) -> Answer:
    raw = document.usageMetadata
    embeds = is_given(document.embedding) or is_given(document.embeddings)
    return Answer(
        model=document.modelVersion or None,
        stop_reason=_stop_reason(document),
        usage=None if raw is None else usage_of(raw, embeds=embeds),
        error=error_of(document.error) if document.error else None,
    )


def fold(documents: list[Document], body: bytes) -> Answer:
    del body
    model = stop_reason = error = usage = None
    for document in documents:
        model = document.modelVersion or model
        stop_reason = _stop_reason(document) or stop_reason
        usage = _merged(usage, document.usageMetadata)
        if document.error and error is None:
            error = error_of(document.error)
    return Answer(
        model=model,
        stop_reason=stop_reason,
        usage=None if usage is None else usage_of(usage),
        usage_is_final=stop_reason is not None,
        error=error,
        complete=stop_reason is not None,
    )


class InteractionUsage(msgspec.Struct, frozen=True):
    """The interactions API's."""

    total_input_tokens: Count | None = None
    total_output_tokens: Count | None = None
    total_thought_tokens: Count | None = None
    total_cached_tokens: Count | None = None
    total_tool_use_tokens: Count | None = None
    total_tokens: Count | None = None


def usage_of_interaction(raw: InteractionUsage) -> Usage | None:
    return usage_of(
        GeminiUsage(
            promptTokenCount=raw.total_input_tokens,
            candidatesTokenCount=raw.total_output_tokens,
            thoughtsTokenCount=raw.total_thought_tokens,
            cachedContentTokenCount=raw.total_cached_tokens,
            toolUsePromptTokenCount=raw.total_tool_use_tokens,
            totalTokenCount=raw.total_tokens,
        )
    )


def _merged(earlier: GeminiUsage | None, later: GeminiUsage | None) -> GeminiUsage | None:
    if earlier is None or later is None:
        return later or earlier
    said = {name: value for name in later.__struct_fields__ if (value := getattr(later, name)) is not None}
    return msgspec.structs.replace(earlier, **said)


def pieces(raw: Any) -> Iterator[Piece]:
    candidates = raw.get("candidates")
    for candidate in candidates if isinstance(candidates, list) else ():
        if not isinstance(candidate, dict):
            continue
        content = candidate.get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if not isinstance(part, dict):
                continue
            place = (candidate.get("index"), bool(part.get("thought")))
            if isinstance(part.get("text"), str):
                yield Block(place), part["text"]
            for name in ("functionCall", "executableCode"):
                if isinstance(call := part.get(name), dict):
                    yield Block((*place, name), is_tool=True), "".join(text_of(value) for value in call.values())


SHAPE = Shape(
    document=Tolerant(Document),
    read=read,
    torn_fields=("usageMetadata", "modelVersion", "finishReason"),
    needles=(b'"usageMetadata"', b'"finishReason"', b'"error"', b'"promptFeedback"'),
    fold=fold,
    pieces=pieces,
)
