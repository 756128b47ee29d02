"""Prices from the packaged genai-prices data, turned into our tables.

The library's own lookup is used for which model a name means (its caches, which grow without bound, are not);
its arithmetic is not, at 100 to 230 µs a call.
"""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal

import genai_prices
from genai_prices import types
from genai_prices.data import providers
from genai_prices.data_snapshot import find_provider_by_id

from pricing.prices import Period, Price, Rate, Variant
from pricing.units import UNITS

_DATA_DATES = {"0.2.3": "2026-11-09"}
"""By version, the newest price change the data knew to be in force when we took it; it carries no date itself."""

_UNITS_BY_PRICE_KEY = {unit.price_key: name for name, unit in UNITS.items()}

_GEO_FACTORS = {"anthropic": {"us": Decimal("1.1")}}
"""Anthropic charges 1.1 times all token prices for inference kept in the US, and answers `inference_geo: "us"`
only where it was (https://platform.claude.com/docs/en/about-claude/pricing#data-residency-pricing). The data
has no such price."""

_AUDIO_SECONDS_MIN = {("groq", "whisper-large-v3"): 10, ("groq", "whisper-large-v3-turbo"): 10}
"""As the library has it."""


class GenaiPrices:
    """Lookup in the packaged data."""

    def __init__(self) -> None:
        self.source = f"genai-prices {genai_prices.__version__}"
        self.as_of = _DATA_DATES.get(genai_prices.__version__)

    def find(self, provider_id: str, model: str) -> Price | None:
        """The price of what `model` means at that provider; `None` for a provider or model the data lacks."""
        provider = find_provider_by_id(providers, provider_id)
        if provider is None:
            return None
        info = provider.find_model(model.lower(), all_providers=providers)
        return None if info is None else self.price(provider, info)

    def price(self, provider: types.Provider, info: types.ModelInfo) -> Price | None:
        if isinstance(info.prices, types.ModelPrice):
            conditions = [types.ConditionalPrice(prices=info.prices)]
        else:
            conditions = list(info.prices)
        if not any(_rates(condition.prices) for condition in conditions):
            if not _is_free(info):
                return None  # Listed, but without a price, or with none we can count by.
            conditions = [types.ConditionalPrice(prices=_FREE)]
        # Variants are the selling provider's own: a model found at a fallback provider has none.
        own = any(info is model for model in provider.models)
        variants = (info.price_variants or ()) if own else ()
        return Price(
            model=info.id,
            periods=[self._period(condition) for condition in conditions],
            variants=[
                Variant(dict(variant.when), _rates(variant.prices), _from_ms(variant.constraint))
                for variant in variants
            ],
            audio_seconds_min=_AUDIO_SECONDS_MIN.get((provider.id, info.id), 0),
            geo_factors=_GEO_FACTORS.get(provider.id),
        )

    def _period(self, condition: types.ConditionalPrice) -> Period:
        constraint = condition.constraint
        day_from_ms = day_until_ms = None
        if isinstance(constraint, types.TimeOfDateConstraint):
            day_from_ms, day_until_ms = _of_day_ms(constraint.start_time), _of_day_ms(constraint.end_time)
        return Period(
            rates=_rates(condition.prices),
            source=self.source,
            as_of=self.as_of,
            from_ms=_from_ms(constraint),
            day_from_ms=day_from_ms,
            day_until_ms=day_until_ms,
            uses_variants=True,
        )


_FREE = types.ModelPrice(input_mtok=Decimal(0), output_mtok=Decimal(0))
_FREE_WORDS = re.compile(r"free of charge|zero token cost")


def _is_free(info: types.ModelInfo) -> bool:
    """The data gives no price both where a model is free and where its price is not known (or not for tokens, like
    music by the song); only what it says to be free is."""
    said = f"{info.price_comments or ''} {info.description or ''}"
    return info.id.endswith(":free") or _FREE_WORDS.search(said) is not None


def _rates(prices: types.ModelPrice) -> dict[str, Rate]:
    """Rates of the units we count. Those we do not (pixels, messages) the library would multiply by 0."""
    stored: Mapping[str, object] = vars(prices)
    rates = {}
    for key, value in stored.items():
        unit = _UNITS_BY_PRICE_KEY.get(key)
        if unit is None:
            continue
        if isinstance(value, types.TieredPrices):
            rates[unit] = Rate(value.base, tuple((tier.start, tier.price) for tier in value.tiers))
        elif isinstance(value, Decimal):
            rates[unit] = Rate(value)
    return rates


def _from_ms(constraint: object) -> int | None:
    if not isinstance(constraint, types.StartDateConstraint):
        return None
    return _midnight_ms(constraint.start_date)


def _midnight_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


def _of_day_ms(moment: time) -> int:
    """Milliseconds from midnight UTC; a time without a zone is UTC."""
    if moment.tzinfo is not None:
        moment = datetime.combine(date(1970, 1, 2), moment).astimezone(UTC).time()
    return ((moment.hour * 60 + moment.minute) * 60 + moment.second) * 1000 + moment.microsecond // 1000
