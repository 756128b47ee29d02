"""What usage costs: by the library's own arithmetic over everything it prices, and by rules of our own."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import types
from genai_prices.data import providers

from pricing.cost import Cost, cost, price_context
from pricing.genai import GenaiPrices
from pricing.prices import Period, Price, PriceBook, Rate
from pricing.usage import Usage

_AT_MS = 1_795_000_000_000
_PLACES = Decimal("0.0000000001")

_FIELDS = {
    "output_reasoning_tokens": "reasoning_tokens",
    "output_citation_tokens": "citation_tokens",
    "input_document_pages": "document_pages",
    "input_audio_seconds": "audio_seconds",
}
"""genai-prices' names that are not ours."""


def _price(rates: dict[str, Rate], *, as_of: str | None = "2026-11-01", source: str = "override") -> Price:
    return Price(model="m", periods=[Period(rates=rates, source=source, as_of=as_of)])


def _rates(**usd: str) -> dict[str, Rate]:
    return {unit: Rate(Decimal(amount)) for unit, amount in usd.items()}


def _tier_starts(info: types.ModelInfo) -> set[int]:
    prices = [info.prices] if isinstance(info.prices, types.ModelPrice) else [c.prices for c in info.prices]
    values = [value for price in prices for value in vars(price).values()]
    return {tier.start for value in values if isinstance(value, types.TieredPrices) for tier in value.tiers}


_CONTEXTS: list[dict[str, str]] = [
    {},
    {"service_tier": "flex"},
    {"service_tier": "priority"},
    {"processing": "batch", "service_tier": "default"},
    {"speed": "fast"},
]


def test_every_model_costs_what_the_library_says() -> None:
    """All models, below, at and above each tier, with every class and with few, at times over the whole year."""
    chance = random.Random(3)
    genai = GenaiPrices()
    compared = 0
    wrong = []
    for provider in providers:
        for info in provider.models:
            price = genai.price(provider, info)
            if price is None:
                continue
            starts = _tier_starts(info)
            inputs = [chance.randrange(5_000, 20_000), *(s + step for s in starts for step in (-1, 0, 1))]
            for input_tokens in inputs:
                for counts in _samples(input_tokens, chance):
                    at = datetime(2026, chance.randrange(1, 13), 9, chance.randrange(24), 30, tzinfo=UTC)
                    context = chance.choice(_CONTEXTS)
                    theirs = info.calc_price(
                        types.Usage(**counts), provider, genai_request_timestamp=at, price_context=context
                    ).total_price.quantize(_PLACES)
                    usage = Usage(**{_FIELDS.get(name, name): count for name, count in counts.items()})  # type: ignore[arg-type]
                    ours = cost(price, usage, at_ms=round(at.timestamp() * 1000), context=context)
                    compared += 1
                    if ours is None or ours.usd != theirs:
                        wrong.append((provider.id, info.id, counts, context, theirs, ours))
    assert wrong == []
    assert compared > 5_000


def _samples(input_tokens: int, chance: random.Random) -> list[dict[str, int | float]]:
    fifth = input_tokens // 5
    output_tokens = chance.randrange(500, 5_000)
    return [
        {"input_tokens": input_tokens, "output_tokens": output_tokens, "cache_read_tokens": fifth},
        {
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cache_read_tokens": fifth,
            "cache_write_tokens": fifth // 2,
            "cache_write_1h_tokens": fifth // 4,
            "output_reasoning_tokens": 100,
            "output_citation_tokens": 7,
            "input_audio_tokens": fifth // 3,
            "cache_audio_read_tokens": fifth // 7,
            "output_audio_tokens": 50,
            "input_image_tokens": fifth // 6,
            "cache_image_read_tokens": fifth // 9,
            "output_image_tokens": 60,
            "input_video_tokens": fifth // 8,
            "output_video_tokens": 3,
            "web_searches": 2,
            "storage_searches": 1,
            "rerank_searches": 1,
            "input_characters": 99,
            "input_document_pages": 3,
            "audio_seconds": 12.5,
            "input_audio_seconds": 12.5,
        },
    ]


def test_unknown_price_is_no_cost_rather_than_zero() -> None:
    assert cost(None, Usage(input_tokens=1, output_tokens=1), at_ms=_AT_MS) is None


def test_a_free_model_costs_zero() -> None:
    found = cost(_price(_rates(input_tokens="0", output_tokens="0")), Usage(input_tokens=9), at_ms=_AT_MS)
    assert found == Cost(Decimal("0E-10"), "override", "2026-11-01")


def test_nothing_used_that_is_known_has_no_cost_even_at_a_free_model() -> None:
    assert cost(_price(_rates(input_tokens="0", output_tokens="0")), Usage(), at_ms=_AT_MS) is None


@pytest.mark.parametrize(
    ("input_tokens", "usd"),
    [
        pytest.param(199_999, "0.3999980000", id="below the tier"),
        pytest.param(200_000, "0.4000000000", id="at the tier"),
        pytest.param(200_001, "0.8000040000", id="above the tier: all tokens at its rate"),
    ],
)
def test_a_tier_begins_above_its_start(input_tokens: int, usd: str) -> None:
    price = _price({"input_tokens": Rate(Decimal(2), ((200_000, Decimal(4)),))})
    found = cost(price, Usage(input_tokens=input_tokens, output_tokens=0), at_ms=_AT_MS)
    assert found is not None
    assert found.usd == Decimal(usd)


def test_a_class_without_a_rate_is_charged_as_part_of_what_contains_it() -> None:
    usage = Usage(input_tokens=1_000_000, output_tokens=0, cache_read_tokens=400_000)
    plain = cost(_price(_rates(input_tokens="2")), usage, at_ms=_AT_MS)
    cached = cost(_price(_rates(input_tokens="2", cache_read_tokens="1")), usage, at_ms=_AT_MS)
    assert plain is not None
    assert cached is not None
    assert (plain.usd, cached.usd) == (Decimal(2), Decimal("1.6"))


def test_a_missing_count_of_a_priced_base_has_no_cost() -> None:
    price = _price(_rates(input_tokens="2", output_tokens="8"))
    assert cost(price, Usage(output_tokens=5), at_ms=_AT_MS) is None
    assert cost(price, Usage(input_tokens=5), at_ms=_AT_MS) is None
    assert cost(_price(_rates(input_tokens="2")), Usage(input_tokens=5), at_ms=_AT_MS) is not None


def test_counts_that_contradict_each_other_have_no_cost() -> None:
    price = _price(_rates(input_tokens="2", cache_read_tokens="1"))
    assert cost(price, Usage(input_tokens=5, cache_read_tokens=6), at_ms=_AT_MS) is None


def test_cached_audio_that_is_not_told_is_what_does_not_fit_otherwise() -> None:
    price = _price(_rates(input_tokens="1", cache_read_tokens="2", input_audio_tokens="4", cache_audio_read_tokens="8"))
    usage = Usage(input_tokens=100, output_tokens=0, cache_read_tokens=100, input_audio_tokens=40)
    found = cost(price, usage, at_ms=_AT_MS)
    assert found is not None
    assert found.usd == Decimal(60 * 2 + 40 * 8) / 1_000_000


def test_the_providers_own_price_wins_and_needs_no_price_of_ours() -> None:
    usage = Usage(input_tokens=5, output_tokens=5, declared_cost_usd=Decimal("0.00004140000000003"))
    assert cost(None, usage, at_ms=_AT_MS) == Cost(Decimal("0.0000414000"), "provider", None)


def test_billed_counts_are_charged_in_place_of_used_ones() -> None:
    price = _price(_rates(input_tokens="1", cache_read_tokens="0.1", output_tokens="1"))
    usage = Usage(
        input_tokens=500,
        output_tokens=20,
        cache_read_tokens=400,
        billed_input_tokens=3,
        billed_output_tokens=4,
    )
    found = cost(price, usage, at_ms=_AT_MS)
    assert found is not None
    assert found.usd == Decimal("0.000007")


def test_audio_by_the_hour_needs_no_tokens() -> None:
    found = cost(_price(_rates(audio_seconds="0.36", input_tokens="5")), Usage(audio_seconds=10.0), at_ms=_AT_MS)
    assert found is not None
    assert found.usd == Decimal("0.001")


def test_inference_kept_in_the_us_costs_a_tenth_more_of_tokens_and_no_more_of_searches(book: PriceBook) -> None:
    price = book.find(provider="anthropic", genai_prices_id="anthropic", model="claude-opus-4-6")
    plain = cost(price, Usage(input_tokens=1_000, output_tokens=100, inference_geo="global"), at_ms=_AT_MS)
    in_us = cost(price, Usage(input_tokens=1_000, output_tokens=100, inference_geo="us"), at_ms=_AT_MS)
    searched = cost(
        price, Usage(input_tokens=1_000, output_tokens=100, inference_geo="us", web_searches=1), at_ms=_AT_MS
    )
    assert plain is not None
    assert in_us is not None
    assert searched is not None
    assert in_us.usd == plain.usd * Decimal("1.1")
    assert searched.usd == in_us.usd + Decimal("0.01")


def test_what_usage_says_of_its_tier_chooses_the_price() -> None:
    assert price_context(Usage(service_tier="ON_DEMAND_FLEX")) == {"service_tier": "flex"}
    assert price_context(Usage(service_tier="batch")) == {"service_tier": "batch", "processing": "batch"}
    assert price_context(Usage(speed="fast")) == {"speed": "fast"}
    assert price_context(Usage()) == {}


def test_a_flex_call_costs_less(book: PriceBook) -> None:
    price = book.find(provider="openai", genai_prices_id="openai", model="gpt-5")
    usage = {"input_tokens": 1_000, "output_tokens": 1_000}
    flex = cost(price, Usage(**usage, service_tier="flex"), at_ms=_AT_MS)  # type: ignore[arg-type]
    default = cost(price, Usage(**usage, service_tier="default"), at_ms=_AT_MS)  # type: ignore[arg-type]
    assert flex is not None
    assert default is not None
    assert flex.usd * 2 == default.usd


def test_ten_decimals_always() -> None:
    found = cost(_price(_rates(input_tokens="0.075")), Usage(input_tokens=1, output_tokens=0), at_ms=_AT_MS)
    assert found is not None
    assert str(found.usd) == "7.50E-8"
    assert found.usd.as_tuple().exponent == -10
