"""Looking a price up: which model, which provider, which time, and how much is remembered."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices.data_units import unit_data

from pricing import prices
from pricing.cost import Cost, cost
from pricing.overrides import parse_overrides
from pricing.prices import Period, Price, PriceBook, Rate, Variant
from pricing.units import UNITS
from pricing.usage import Usage

_AT_MS = 1_795_000_000_000
_USAGE = Usage(input_tokens=1_000_000, output_tokens=1_000_000)


def _ms(*moment: int) -> int:
    year, month, day, *rest = moment
    hour, minute = (*rest, 0, 0)[:2]
    return int(datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp()) * 1000


def test_units_are_the_librarys() -> None:
    for name, unit in UNITS.items():
        theirs = unit_data[name]
        assert (unit.price_key, unit.per, unit.dimensions) == (theirs["price_key"], theirs["per"], theirs["dimensions"])
        assert not unit.field or unit.field in Usage.__struct_fields__


@pytest.mark.parametrize(
    ("genai_prices_id", "model"),
    [
        pytest.param("openai", "no-such-model", id="model"),
        pytest.param("no-such-provider", "gpt-4o", id="provider"),
        pytest.param(None, "gpt-4o", id="provider without prices"),
        pytest.param("openai", None, id="no model named"),
        pytest.param("openai", "", id="an empty name"),
        pytest.param("openrouter", "google/lyria-3-pro-preview", id="listed, priced by the song"),
    ],
)
def test_unknown_has_no_price(book: PriceBook, genai_prices_id: str | None, model: str | None) -> None:
    assert book.find(provider="x", genai_prices_id=genai_prices_id, model=model) is None


@pytest.mark.parametrize(
    ("genai_prices_id", "model"),
    [
        ("openrouter", "deepseek/deepseek-r1:free"),
        ("openai", "omni-moderation-latest"),
        ("github-copilot", "gpt-4o"),
    ],
)
def test_a_model_said_to_be_free_costs_zero(book: PriceBook, genai_prices_id: str, model: str) -> None:
    found = cost(book.find(provider="x", genai_prices_id=genai_prices_id, model=model), _USAGE, at_ms=_AT_MS)
    assert found is not None
    assert found.usd == 0


@pytest.mark.parametrize(
    ("provider", "genai_prices_id", "model"),
    [
        ("openai", "openai", "gpt-4o-2024-08-06"),
        ("openai", "openai", "ft:gpt-4o-mini-2024-07-18:acme::abc"),
        ("azure", "azure", "gpt-4.1-mini-2025-04-14"),
        ("bedrock", "aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("openrouter", "openrouter", "anthropic/claude-3.5-sonnet"),
        ("openrouter", "openrouter", "openai/gpt-4o-mini"),
        ("vertex-anthropic", "google", "claude-sonnet-4-5@20250929"),
        ("groq", "groq", "llama-3.3-70b-versatile"),
        ("OPENAI", "openai", "GPT-4O"),
    ],
)
def test_names_as_providers_and_routers_write_them_are_known(
    book: PriceBook, provider: str, genai_prices_id: str, model: str
) -> None:
    found = cost(book.find(provider=provider, genai_prices_id=genai_prices_id, model=model), _USAGE, at_ms=_AT_MS)
    assert found is not None
    assert found.usd > 0
    assert (found.source, found.prices_as_of) == ("genai-prices 0.2.3", "2026-11-09")


def test_a_price_is_looked_up_once(book: PriceBook) -> None:
    first = book.find(provider="openai", genai_prices_id="openai", model="gpt-4.1")
    assert first is book.find(provider="openai", genai_prices_id="openai", model="gpt-4.1")


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "_LOOKUPS_MAX", 8)
    book = PriceBook()
    for number in range(50):
        book.find(provider="openai", genai_prices_id="openai", model=f"model-{number}")
    assert len(book._known) == 8


def test_a_price_that_changes_is_the_one_of_the_calls_time() -> None:
    price = Price(
        model="m",
        periods=[
            Period(rates={"input_tokens": Rate(Decimal(1))}, source="s", as_of=None),
            Period(rates={"input_tokens": Rate(Decimal(2))}, source="s", as_of=None, from_ms=_ms(2026, 6, 1)),
        ],
    )
    usage = Usage(input_tokens=1_000_000, output_tokens=0)
    before = cost(price, usage, at_ms=_ms(2026, 6, 1) - 1)
    after = cost(price, usage, at_ms=_ms(2026, 6, 1))
    assert before is not None
    assert after is not None
    assert [before.usd, after.usd] == [1, 2]


@pytest.mark.parametrize(
    ("hour", "minute", "holds"),
    [(22, 59, False), (23, 0, True), (0, 0, True), (1, 59, True), (2, 0, False)],
)
def test_a_period_over_midnight_holds_on_both_sides(hour: int, minute: int, holds: bool) -> None:
    period = Period(rates={}, source="s", as_of=None, day_from_ms=23 * 3_600_000, day_until_ms=2 * 3_600_000)
    assert period.holds(_ms(2026, 6, 1, hour, minute)) is holds


def test_the_first_variant_that_fits_gives_the_rate() -> None:
    price = Price(
        model="m",
        periods=[Period(rates={"input_tokens": Rate(Decimal(4))}, source="s", as_of=None, uses_variants=True)],
        variants=[
            Variant({"service_tier": "flex"}, {"input_tokens": Rate(Decimal(1))}, from_ms=_ms(2026, 1, 1)),
            Variant({"service_tier": "flex"}, {"input_tokens": Rate(Decimal(2))}),
        ],
    )
    usage = Usage(input_tokens=1_000_000, output_tokens=0, service_tier="flex")
    costs = [cost(price, usage, at_ms=_ms(year, 6, 1)) for year in (2025, 2026)]
    assert [found.usd for found in costs if found is not None] == [2, 1]


def test_an_override_holds_before_the_packaged_price() -> None:
    overrides = parse_overrides(
        """
        [[price]]
        provider = "openai"
        model = "gpt-4o*"
        as_of = 2026-11-02
        input = 1
        output = 1.5
        """
    )
    book = PriceBook(overrides)
    price = book.find(provider="openai", genai_prices_id="openai", model="GPT-4o-mini")
    assert cost(price, _USAGE, at_ms=_AT_MS) == Cost(Decimal("2.5000000000"), "override", "2026-11-02")
    other = cost(book.find(provider="azure", genai_prices_id="azure", model="gpt-4o-mini"), _USAGE, at_ms=_AT_MS)
    assert other is not None
    assert other.source == "genai-prices 0.2.3"


def test_an_override_holds_for_a_provider_no_list_knows() -> None:
    text = '[[price]]\nprovider = "llm.internal"\nmodel = "*"\ninput = 0\noutput = 0\n'
    price = PriceBook(parse_overrides(text)).find(provider="llm.internal", genai_prices_id=None, model="anything")
    found = cost(price, _USAGE, at_ms=_AT_MS)
    assert found is not None
    assert found.usd == 0
    assert found.source == "override"


def test_before_an_override_begins_the_packaged_price_holds() -> None:
    text = '[[price]]\nprovider="openai"\nmodel="gpt-4o"\nfrom=2026-11-10\ninput=1\noutput=1\n'
    book = PriceBook(parse_overrides(text))
    price = book.find(provider="openai", genai_prices_id="openai", model="gpt-4o")
    sources = [cost(price, _USAGE, at_ms=at) for at in (_ms(2026, 11, 10) - 1, _ms(2026, 11, 10))]
    assert [found.source for found in sources if found is not None] == ["genai-prices 0.2.3", "override"]
    alone = PriceBook(parse_overrides(text)).find(provider="openai", genai_prices_id=None, model="gpt-4o")
    assert cost(alone, _USAGE, at_ms=_ms(2026, 11, 10) - 1) is None


def test_of_overrides_the_last_that_matches_holds() -> None:
    text = "".join(
        f'[[price]]\nprovider="openai"\nmodel="{model}"\ninput={usd}\noutput=0\n'
        for model, usd in (("gpt-4o", 1), ("gpt-*", 2), ("gpt-*-mini", 3))
    )
    book = PriceBook(parse_overrides(text))
    costs = [
        cost(book.find(provider="openai", genai_prices_id="openai", model=model), _USAGE, at_ms=_AT_MS)
        for model in ("gpt-4o", "gpt-4o-mini")
    ]
    assert [found.usd for found in costs if found is not None] == [2, 3]
