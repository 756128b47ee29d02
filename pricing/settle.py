"""The last word on what a call used: as reported, else counted, else estimated, else unknown."""

from typing import Literal

import msgspec

from pricing.prompt import Prompt, read_prompt
from pricing.reading import Answer
from pricing.tokens import Count, count_output, count_prompt
from pricing.usage import Usage

UsageSource = Literal["reported", "counted", "estimated", "none"]

_EMBEDS = frozenset({"openai.embeddings", "gemini.embed", "embed"})
_OWN_MODELS = frozenset({"openai", "azure", "azure-cognitive-services", "openrouter", "github-models"})
"""Where a model by one of OpenAI's names is OpenAI's. A local server may call anything `gpt-3.5-turbo`."""
_UNCOUNTABLE = frozenset({"openai.images", "rerank"})
"""What these charge for is not text."""


class SettledUsage(msgspec.Struct, frozen=True):
    source: UsageSource
    usage: Usage


NOTHING = SettledUsage("none", Usage())


def settle(
    api: str,
    *,
    provider: str,
    model: str | None,
    status: int | None,
    answer: Answer,
    request_body: bytes,
    request_tail: bytes = b"",
    request_size: int | None = None,
) -> SettledUsage:
    """What a call used and how that is known. The request is read only when the provider left something out.

    A stream that broke off counts what arrived; where it reported a part (Anthropic's input), that stays as
    reported and the whole is called by its weaker part. An error without usage used nothing that is known.

    Args:
        provider: id in our catalogue, or a host's name.
        model: the answered model, else the requested one.
        status: the provider's; `None` when no answer came.
    """
    usage = answer.usage
    if usage is not None and _is_whole(usage, answer):
        return SettledUsage("reported", usage)
    nothing = NOTHING if usage is None else SettledUsage("reported", usage)
    if status is None or status >= 400 or api in _UNCOUNTABLE or model is None:
        return nothing
    embeds = api in _EMBEDS or answer.embeds
    if usage is None and answer.output is None and not embeds:
        return nothing  # Nothing in the answer is generated text: a listing, a file, a job not begun.
    if usage is None and embeds and answer.error is not None:
        return nothing
    prompt = Prompt()
    if usage is None or usage.input_tokens is None:
        prompt = read_prompt(api, request_body, tail=request_tail, size=request_size)
    return _filled(api, provider, model, answer, prompt)


def as_reported(answer: Answer) -> SettledUsage:
    """What a call used as the provider says it, or nothing: where there is no time to count."""
    usage = answer.usage
    return SettledUsage("reported", usage) if usage is not None and _is_whole(usage, answer) else NOTHING


def _is_whole(usage: Usage, answer: Answer) -> bool:
    if not answer.usage_is_final:
        return False
    if usage.input_tokens is not None and usage.output_tokens is not None:
        return True
    # Audio by the second, searches, pages: measured in something else than tokens.
    return usage.input_tokens is None and usage.output_tokens is None


def _filled(api: str, provider: str, model: str, answer: Answer, prompt: Prompt) -> SettledUsage:
    """What was reported, and counts of our own for the rest."""
    known = answer.usage or Usage()
    counts: list[Count] = []
    input_tokens, output_tokens = known.input_tokens, known.output_tokens
    if input_tokens is None and prompt:
        counts.append(count_prompt(model, prompt))
        input_tokens = counts[-1].tokens
    if api in _EMBEDS or answer.embeds:
        output_tokens = 0 if input_tokens is not None else None
    elif output_tokens is None or not answer.usage_is_final:
        counts.append(_output_count(api, provider, model, answer))
        # What a stream had reported by then is the least it can be.
        output_tokens = max(counts[-1].tokens, output_tokens or 0)
    if not counts:
        return NOTHING if answer.usage is None else SettledUsage("reported", answer.usage)
    exact = provider in _OWN_MODELS and all(count.is_exact for count in counts)
    return SettledUsage(
        "counted" if exact else "estimated",
        msgspec.structs.replace(known, input_tokens=input_tokens, output_tokens=output_tokens),
    )


def _output_count(api: str, provider: str, model: str, answer: Answer) -> Count:
    tokens, exact = count_output(model, answer.output or ())
    if answer.kept < 1:
        tokens, exact = round(tokens / max(answer.kept, 0.001)), False
    if answer.output and (api == "openai.responses" or (api == "openai.chat" and provider.startswith("azure"))):
        tokens += 1  # Both count the mark that ends a message: 8 of 8 and 16 of 17 recorded answers.
    return Count(tokens, exact and not answer.called_tools)
