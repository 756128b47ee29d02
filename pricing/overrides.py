"""The user's own prices: a TOML text, checked so that a mistake names its place, its value and what would be right.

    [[price]]
    provider = "openai"        # id in the catalogue, "*" for any
    model = "gpt-4o*"          # "*" stands for any characters; upper and lower case are one
    as_of = 2026-11-01         # optional: when you looked these prices up
    from = 2026-12-01          # optional: before this day (UTC) what stands above holds
    input = 2.5                # US dollars for a million tokens …
    cache_read = 1.25
    output = 10
    per_web_search = 0.01      # … or for one of what the name says

    [[price.above]]            # optional: rates for calls with more input than this
    input_tokens = 200000
    input = 5

The last entry that matches a call holds, and it holds whole: a class it does not name is charged as part of what
contains it (cached tokens as input), and is not taken from the packaged price.
"""

import difflib
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from pricing.prices import Override, Overrides, Period, Rate
from pricing.units import UNITS


class BadOverrides(ValueError):
    """The text is no price file. The message names the place, the value and what would be right."""


_PER_MILLION = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "reasoning": "output_reasoning_tokens",
    "input_audio": "input_audio_tokens",
    "output_audio": "output_audio_tokens",
    "cache_read_audio": "cache_audio_read_tokens",
    "input_image": "input_image_tokens",
    "output_image": "output_image_tokens",
    "input_video": "input_video_tokens",
}
_PER_ONE = {
    "per_request": "requests",
    "per_web_search": "web_searches",
    "per_storage_search": "storage_searches",
    "per_rerank_search": "rerank_searches",
    "per_page": "input_document_pages",
    "per_audio_hour": "audio_seconds",
}
_RATES = {**_PER_MILLION, **_PER_ONE}
_WORDS = {"provider", "model", "as_of", "from", "above"}
_USD_MAX = 1_000_000


def parse_overrides(text: str) -> Overrides:
    """The overrides in a file's text.

    Raises:
        BadOverrides: something in it is wrong; nothing of it is used.
    """
    try:
        # Decimals stay decimal: 0.1 in the file is a tenth, not the nearest binary fraction.
        document = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise BadOverrides(f"not TOML: {error}") from error
    for name in document:
        if name != "price":
            raise BadOverrides(f"{name}: unknown name; prices are written as [[price]]")
    entries = document.get("price", [])
    if not isinstance(entries, list):
        raise BadOverrides("price: one table; write [[price]] with two brackets, one for each model")
    return Overrides([_entry(f"price[{place}]", entry) for place, entry in enumerate(entries, start=1)])


def _entry(place: str, raw: Any) -> Override:
    if not isinstance(raw, dict):
        raise BadOverrides(f"{place}: {raw!r} is no table; write [[price]] and its fields below")
    _check_names(place, raw, _WORDS | _RATES.keys())
    rates = _rates(place, raw)
    if not rates:
        raise BadOverrides(f"{place}: no price; give at least one of {', '.join(_RATES)} (0 for a free model)")
    tiers = raw.get("above", [])
    if not isinstance(tiers, list):
        raise BadOverrides(f"{place}.above: write [[price.above]] with two brackets, one for each tier")
    starts = _tiers(place, tiers, rates)
    _check_whole(place, rates)
    day = _day(f"{place}.from", raw.get("from"))
    as_of = _day(f"{place}.as_of", raw.get("as_of"))
    return Override(
        provider=_name(f"{place}.provider", raw.get("provider")),
        model=_name(f"{place}.model", raw.get("model")).lower(),
        period=Period(
            rates={unit: Rate(base, starts.get(unit, ())) for unit, base in rates.items()},
            source="override",
            as_of=as_of.isoformat() if as_of is not None else day.isoformat() if day is not None else None,
            from_ms=None if day is None else int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000,
        ),
    )


def _check_names(place: str, raw: Mapping[str, Any], known: set[str]) -> None:
    for name in raw:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise BadOverrides(f"{place}.{name}: unknown name; {meant}")


def _rates(place: str, raw: Mapping[str, Any]) -> dict[str, Decimal]:
    """Dollars by unit, in each unit's own scale."""
    rates = {}
    for name, unit in _RATES.items():
        if name in raw:
            usd = _usd(f"{place}.{name}", raw[name])
            rates[unit] = usd * UNITS[unit].per if name in _PER_ONE and name != "per_audio_hour" else usd
    return rates


def _usd(place: str, raw: Any) -> Decimal:
    if isinstance(raw, bool) or not isinstance(raw, int | Decimal):
        raise BadOverrides(f"{place}: {raw!r} is no amount; write US dollars as a number, like 2.5")
    usd = Decimal(raw)
    if not usd.is_finite() or not 0 <= usd <= _USD_MAX:
        raise BadOverrides(f"{place}: {raw} is no price; write US dollars from 0 to {_USD_MAX}")
    return usd


def _tiers(place: str, tiers: list[Any], rates: Mapping[str, Decimal]) -> dict[str, tuple[tuple[int, Decimal], ...]]:
    found: dict[str, list[tuple[int, Decimal]]] = {}
    before = 0
    for number, tier in enumerate(tiers, start=1):
        at = f"{place}.above[{number}]"
        if not isinstance(tier, dict):
            raise BadOverrides(f"{at}: {tier!r} is no table; write [[price.above]] and its fields below")
        _check_names(at, tier, {"input_tokens", *_PER_MILLION})
        start = tier.get("input_tokens")
        if isinstance(start, bool) or not isinstance(start, int) or start <= before:
            what = "missing" if start is None else repr(start)
            raise BadOverrides(f"{at}.input_tokens: {what}; write a whole number above {before}, tiers in rising order")
        before = start
        for unit, usd in _rates(at, {name: value for name, value in tier.items() if name != "input_tokens"}).items():
            if unit not in rates:
                raise BadOverrides(f"{at}: {unit} has no price below the tier; give it in {place} as well")
            found.setdefault(unit, []).append((start, usd))
    return {unit: tuple(steps) for unit, steps in found.items()}


_WHOLES = {
    "cache_write_tokens": ("cache_write_1h_tokens",),
    "cache_read_tokens": ("cache_audio_read_tokens",),
    "input_tokens": (
        *("cache_read_tokens", "cache_write_tokens", "input_audio_tokens", "input_image_tokens"),
        "input_video_tokens",
    ),
    "output_tokens": ("output_reasoning_tokens", "output_audio_tokens", "output_image_tokens"),
    "input_audio_tokens": ("cache_audio_read_tokens",),
}


def _check_whole(place: str, rates: Mapping[str, Decimal]) -> None:
    """A part without its whole would leave the rest of the whole free of charge in silence."""
    names = {unit: name for name, unit in _RATES.items()}
    for whole, parts in _WHOLES.items():
        for part in parts:
            if part in rates and whole not in rates:
                raise BadOverrides(f"{place}.{names[whole]}: missing; {names[part]} is a part of it, so give both")


def _name(place: str, raw: Any) -> str:
    if not isinstance(raw, str) or not raw.strip():
        what = "missing" if raw is None else repr(raw)
        raise BadOverrides(f'{place}: {what}; write a name in quotes, "*" for any')
    return raw.strip()


def _day(place: str, raw: Any) -> date | None:
    if raw is None:
        return None
    if isinstance(raw, str):
        try:
            return date.fromisoformat(raw)
        except ValueError:
            pass
    if isinstance(raw, datetime) or not isinstance(raw, date):
        raise BadOverrides(f"{place}: {raw!r} is no day; write it like 2026-11-01")
    return raw
