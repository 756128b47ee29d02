"""What a call cost: counts times rates, in decimals, rounded once at the end to ten places.

Each unit is charged for what none of its priced parts took: cached tokens at the cache's rate, the rest of the
input at the input's. A class that was used and has no rate of its own stays in what contains it (cached tokens are
then plain input), as in genai-prices; one that nothing contains (a search without a price) costs nothing.
"""

from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal

import msgspec

from pricing.prices import Line, Price, Table
from pricing.usage import Usage

_PLACES = Decimal("0.0000000001")
_ZERO = Decimal(0)
_USD_MAX = Decimal(10) ** 8
"""`Decimal(18, 10)` holds less than this."""


class Cost(msgspec.Struct, frozen=True):
    usd: Decimal
    """Ten decimals."""
    source: str
    """`genai-prices <version>`, `override`, or `provider` when it named the price itself."""
    prices_as_of: str | None
    """Date (ISO) the prices are of; the provider's own have none."""


def cost(price: Price | None, usage: Usage, *, at_ms: int, context: Mapping[str, str] | None = None) -> Cost | None:
    """What this usage cost, or `None` when that is not known. Never a guess, never 0 for unknown.

    Args:
        price: of the answered model; `None` when there is none, and then only a declared cost is left.
        usage: settled; counts that contradict each other (more cached than sent) have no cost.
        at_ms: when the call came in, milliseconds since 1970, UTC: prices change.
        context: what else chooses the price, added to what usage says itself (`{"processing": "batch"}`).
    """
    if usage.declared_cost_usd is not None:
        return _cost(usage.declared_cost_usd, "provider", None)
    if price is None or not usage:
        return None
    said = price_context(usage) if price.variants else {}
    rates, period = price.at(at_ms, {**said, **context} if context else said)
    if period.from_ms is not None and at_ms < period.from_ms and period.source == "override":
        return None  # An override alone, that has not begun.
    usd = _charge(rates, _counts(usage), price) if rates.lines else None
    if usd is None:
        return None
    return _cost(usd, period.source, period.as_of)


def price_context(usage: Usage) -> dict[str, str]:
    """What usage says that chooses between a model's prices, in genai-prices' words."""
    context = {}
    tier = usage.service_tier
    if tier is not None:
        tier = tier.lower().removeprefix("on_demand_")  # Vertex says ON_DEMAND_FLEX
        if tier == "batch":
            context["processing"] = "batch"
        context["service_tier"] = tier
    if usage.speed is not None:
        context["speed"] = usage.speed
    return context


def _cost(usd: Decimal, source: str, as_of: str | None) -> Cost | None:
    if usd >= _USD_MAX:
        return None
    return Cost(usd.quantize(_PLACES, ROUND_HALF_EVEN), source, as_of)


def _counts(usage: Usage) -> Usage:
    """What is charged for: the billed counts where they differ from the used ones."""
    if usage.billed_input_tokens is None and usage.billed_output_tokens is None:
        return usage
    return Usage(
        input_tokens=usage.billed_input_tokens,
        output_tokens=usage.billed_output_tokens,
        rerank_searches=usage.rerank_searches,
        web_searches=usage.web_searches,
    )


_MEASURES = frozenset({"audio_seconds", "input_characters", "document_pages", "rerank_searches"})
"""Ways to charge that are not tokens."""


def _charge(rates: Table, usage: Usage, price: Price) -> Decimal | None:
    factor = price.geo_factors.get(usage.inference_geo) if usage.inference_geo is not None else None
    total = _ZERO
    own: list[Decimal | int] = []
    for line in rates.lines:
        count = _count(line, usage, price)
        if count is None:
            parts_used = any(own[part] for part in line.parts)
            if line.field in _BASES and (parts_used or not (line.rate.is_free or _is_measured(rates, usage))):
                return None
            count = sum(own[part] for part in line.parts)
        for part in line.parts:
            count -= own[part]
        if count < 0:
            return None
        own.append(count)
        if count:
            rate = line.rate.at(usage.input_tokens or 0) if line.rate.tiers else line.rate.base
            charge = rate * count / line.per
            total += charge * factor if factor is not None and line.unit.endswith("_tokens") else charge
    return total


_BASES = frozenset({"input_tokens", "output_tokens"})


def _count(line: Line, usage: Usage, price: Price) -> Decimal | int | None:
    if not line.field:
        return 1
    said: float | int | None = getattr(usage, line.field)
    if said is None:
        return _cached_of_modality(line.field, usage)
    if line.field == "audio_seconds":
        return Decimal(repr(max(said, price.audio_seconds_min) if said > 0 else 0))
    assert isinstance(said, int)
    return said


def _cached_of_modality(field: str, usage: Usage) -> int | None:
    """How much of the audio (images, video) must have been cached, where the provider does not say: what does not
    fit into the input otherwise."""
    modality = field.removeprefix("cache_").removesuffix("_read_tokens")
    if modality == field or not usage.cache_read_tokens or usage.input_tokens is None:
        return None
    of_modality: int | None = getattr(usage, f"input_{modality}_tokens", None)
    return max(0, usage.cache_read_tokens + of_modality - usage.input_tokens) if of_modality else None


def _is_measured(rates: Table, usage: Usage) -> bool:
    """Whether something else than tokens is charged for and known, so that tokens may stay unknown."""
    return any(line.field in _MEASURES and getattr(usage, line.field) is not None for line in rates.lines)
