"""A model's price, looked up once and kept as a small table: a rate for each unit, with tiers, periods, variants.

The arithmetic is in cost.py; where prices come from in genai.py (the packaged data) and overrides.py (the user's).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from decimal import Decimal

import msgspec

from pricing.units import UNITS, is_part

DAY_MS = 86_400_000
_TABLES_MAX = 64
_LOOKUPS_MAX = 4096
_REMEMBERED_LENGTH = 256
"""Model names come from clients, so what is remembered of them is bounded."""


class Rate(msgspec.Struct, frozen=True):
    """Dollars for `per` of a unit. A tier reached applies to all tokens, not only to those above it."""

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()
    """(input tokens above which it holds, dollars), ascending."""

    def at(self, input_tokens: int) -> Decimal:
        for start, price in reversed(self.tiers):
            if input_tokens > start:
                return price
        return self.base

    @property
    def is_free(self) -> bool:
        return not self.base and not any(price for _, price in self.tiers)


class Line(msgspec.Struct, frozen=True):
    """One priced unit of a table."""

    unit: str
    field: str
    per: int
    rate: Rate
    parts: tuple[int, ...]
    """Places of the lines whose counts are contained in this one's."""


class Table(msgspec.Struct, frozen=True):
    """Rates in force for one call, most particular units first, so that a line's parts stand before it."""

    lines: tuple[Line, ...]


def table(rates: Mapping[str, Rate]) -> Table:
    """Orders the rates for the arithmetic: of each unit only what none of its priced parts took is charged."""
    names = sorted(rates, key=lambda name: (-len(UNITS[name].dimensions), name))
    return Table(
        tuple(
            Line(
                unit=name,
                field=UNITS[name].field,
                per=UNITS[name].per,
                rate=rates[name],
                parts=tuple(place for place, part in enumerate(names) if is_part(name, part)),
            )
            for name in names
        )
    )


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """Rates and when they hold: from a moment on, or between two times of every day (UTC)."""

    rates: dict[str, Rate]
    source: str
    as_of: str | None
    from_ms: int | None = None
    day_from_ms: int | None = None
    day_until_ms: int | None = None
    uses_variants: bool = False

    def holds(self, at_ms: int) -> bool:
        if self.from_ms is not None and at_ms < self.from_ms:
            return False
        if self.day_from_ms is None or self.day_until_ms is None:
            return True
        of_day = at_ms % DAY_MS
        if self.day_until_ms < self.day_from_ms:
            return of_day >= self.day_from_ms or of_day < self.day_until_ms
        return self.day_from_ms <= of_day < self.day_until_ms


class Variant(msgspec.Struct, frozen=True):
    """Rates for calls of one kind (`service_tier` = `flex`); the first that fits gives each rate."""

    when: dict[str, str]
    rates: dict[str, Rate]
    from_ms: int | None = None

    def fits(self, at_ms: int, context: Mapping[str, str]) -> bool:
        if self.from_ms is not None and at_ms < self.from_ms:
            return False
        return all(context.get(name) == value for name, value in self.when.items())


class Price:
    """What one model costs at one provider, over time.

    `periods` are tried from the last to the first; the first is the fallback. `audio_seconds_min` is the shortest
    recording a provider charges for.
    """

    __slots__ = ("_tables", "audio_seconds_min", "geo_factors", "model", "periods", "variants")

    def __init__(
        self,
        *,
        model: str,
        periods: Sequence[Period],
        variants: Sequence[Variant] = (),
        audio_seconds_min: int = 0,
        geo_factors: Mapping[str, Decimal] | None = None,
    ) -> None:
        assert periods
        self.model = model
        self.periods = tuple(periods)
        self.variants = tuple(variants)
        self.audio_seconds_min = audio_seconds_min
        self.geo_factors = dict(geo_factors or {})
        self._tables: dict[tuple[int, tuple[int, ...]], Table] = {}

    def __repr__(self) -> str:
        return f"Price(model={self.model!r}, source={self.periods[-1].source!r}, periods={len(self.periods)})"

    def period_at(self, at_ms: int) -> tuple[int, Period]:
        for place in range(len(self.periods) - 1, 0, -1):
            if self.periods[place].holds(at_ms):
                return place, self.periods[place]
        return 0, self.periods[0]

    def at(self, at_ms: int, context: Mapping[str, str]) -> tuple[Table, Period]:
        """The table for a call at `at_ms` (milliseconds since 1970, UTC) of the kind `context` tells."""
        place, period = self.period_at(at_ms)
        fitting: tuple[int, ...] = ()
        if context and self.variants and period.uses_variants:
            fitting = tuple(i for i, variant in enumerate(self.variants) if variant.fits(at_ms, context))
        key = (place, fitting)
        found = self._tables.get(key)
        if found is None:
            rates = dict(period.rates)
            for variant in reversed([self.variants[i] for i in fitting]):
                rates.update(variant.rates)
            found = table(rates)
            if len(self._tables) < _TABLES_MAX:
                self._tables[key] = found
        return found, period


class PriceBook:
    """Prices by provider and model: the user's overrides first, then the packaged data.

    Not shared between threads: each worker process has its own.
    """

    def __init__(self, overrides: "Overrides | None" = None) -> None:
        from pricing.genai import GenaiPrices  # takes 0.7 s and 60 MB, which the edge must not pay

        self._genai = GenaiPrices()
        self._overrides = overrides
        self._known: OrderedDict[tuple[str, str | None, str], Price | None] = OrderedDict()

    def find(self, *, provider: str, genai_prices_id: str | None, model: str | None) -> Price | None:
        """The price of `model` at `provider`, or `None` when it is not known: which is not 0.

        Args:
            provider: id in our catalogue; overrides are looked up by it.
            genai_prices_id: the provider's id in genai-prices, where the catalogue has one.
            model: as answered (the one that did the work, whatever a deployment or router was asked for).
        """
        if not model:
            return None
        if len(model) > _REMEMBERED_LENGTH:
            return self._look_up(provider, genai_prices_id, model)
        key = (provider, genai_prices_id, model)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        price = self._look_up(provider, genai_prices_id, model)
        self._known[key] = price
        if len(self._known) > _LOOKUPS_MAX:
            self._known.popitem(last=False)
        return price

    def _look_up(self, provider: str, genai_prices_id: str | None, model: str) -> Price | None:
        packaged = self._genai.find(genai_prices_id, model) if genai_prices_id else None
        own = self._overrides.periods(provider, model) if self._overrides is not None else []
        if not own:
            return packaged
        if packaged is None:
            # Nothing else holds before an override begins, so the call has no price then.
            return Price(model=model, periods=own)
        return Price(
            model=packaged.model,
            periods=(*packaged.periods, *own),
            variants=packaged.variants,
            audio_seconds_min=packaged.audio_seconds_min,
            geo_factors=packaged.geo_factors,
        )


class Overrides:
    """The user's own prices, in the order of the file; the last that matches and has begun holds."""

    def __init__(self, entries: Sequence["Override"]) -> None:
        self.entries = tuple(entries)

    def periods(self, provider: str, model: str) -> list[Period]:
        return [entry.period for entry in self.entries if entry.matches(provider, model)]


class Override(msgspec.Struct, frozen=True):
    """One entry of the file."""

    provider: str
    """Id in our catalogue, or `*`."""
    model: str
    """Name in lower case; `*` stands for any characters."""
    period: Period

    def matches(self, provider: str, model: str) -> bool:
        return self.provider in ("*", provider) and _fits(self.model, model.lower())


def _fits(pattern: str, name: str) -> bool:
    """Whether `name` is `pattern`, where `*` is any text. Linear: each piece is looked for after the last."""
    if "*" not in pattern:
        return pattern == name
    first, *middle, last = pattern.split("*")
    if not name.startswith(first) or len(name) < len(first) + len(last) or not name.endswith(last):
        return False
    place, end = len(first), len(name) - len(last)
    for piece in middle:
        found = name.find(piece, place, end)
        if found < 0:
            return False
        place = found + len(piece)
    return True
