"""The user's price file: what it means, and what it says of a mistake."""

import re
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest

from pricing.overrides import _RATES, _WORDS, BadOverrides, parse_overrides

_PAGE = (Path(__file__).parents[2] / "docs" / "pricing.md").read_text()
_HEAD = '[[price]]\nprovider = "openai"\nmodel = "m"\n'


def test_the_documented_example_is_understood() -> None:
    overrides = parse_overrides(
        """
        [[price]]
        provider = "openai"
        model = "GPT-4o*"
        as_of = 2026-11-01
        from = 2026-12-01
        input = 2.5
        cache_read = 1.25
        output = 10
        per_web_search = 0.01

        [[price.above]]
        input_tokens = 200000
        input = 5
        """
    )
    (entry,) = overrides.entries
    rates = entry.period.rates
    assert (entry.provider, entry.model) == ("openai", "gpt-4o*")
    assert (rates["input_tokens"].base, rates["input_tokens"].tiers) == (Decimal("2.5"), ((200_000, Decimal(5)),))
    assert rates["web_searches"].base == 10  # for a thousand, as the unit has it
    assert entry.period.as_of == "2026-11-01"
    assert entry.period.from_ms == 1_796_083_200_000


def test_the_page_names_all_that_an_entry_may_hold_and_nothing_else() -> None:
    page = _PAGE.partition("## Prices of your own")[2]
    (example,) = re.findall(r"```toml\n(.+?)```", page, re.DOTALL)
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]

    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == _RATES.keys()
    assert tomllib.loads(example)["price"][0].keys() >= _WORDS
    assert len(parse_overrides(example).entries) == 1


def test_an_empty_file_overrides_nothing() -> None:
    assert parse_overrides("").entries == ()


def test_amounts_stay_decimal() -> None:
    (entry,) = parse_overrides(_HEAD + "input = 0.1").entries
    assert entry.period.rates["input_tokens"].base == Decimal("0.1")


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("*", "anything", True),
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-*-mini", "gpt-4o-mini", True),
        ("gpt-*-mini", "gpt-mini", False),
        ("*a*b*", "xxaxxbxx", True),
        ("*a*b*", "xxbxxaxx", False),
        ("ab*ba", "aba", False),
    ],
)
def test_a_star_stands_for_any_characters(pattern: str, name: str, fits: bool) -> None:
    overrides = parse_overrides(f'[[price]]\nprovider="p"\nmodel="{pattern}"\ninput=1')
    assert bool(overrides.periods("p", name)) is fits
    assert overrides.periods("other", name) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("price = [", "not TOML", id="no TOML"),
        pytest.param("[[prices]]", "prices: unknown name; prices are written as [[price]]", id="another table"),
        pytest.param("[price]\ninput=1", "price: one table; write [[price]] with two brackets", id="one bracket"),
        pytest.param("price = [1]", "price[1]: 1 is no table", id="no table"),
        pytest.param('[[price]]\nmodel="m"\ninput=1', 'price[1].provider: missing; write a name in quotes, "*" for any',
                     id="no provider"),
        pytest.param('[[price]]\nprovider="p"\nmodel=3\ninput=1', "price[1].model: 3; write a name", id="no name"),
        pytest.param(_HEAD + "inptu = 1", "price[1].inptu: unknown name; did you mean input?", id="a slip"),
        pytest.param(_HEAD, "price[1]: no price; give at least one of input, output", id="no price"),
        pytest.param(_HEAD + 'input = "2.5"', "price[1].input: '2.5' is no amount; write US dollars as a number",
                     id="text"),
        pytest.param(_HEAD + "input = true", "price[1].input: True is no amount", id="a boolean"),
        pytest.param(_HEAD + "input = -1", "price[1].input: -1 is no price; write US dollars from 0", id="negative"),
        pytest.param(_HEAD + "input = nan", "price[1].input: NaN is no price", id="not a number"),
        pytest.param(_HEAD + "input = 1e9", "is no price", id="far too much"),
        pytest.param(_HEAD + "cache_read = 1", "price[1].input: missing; cache_read is a part of it, so give both",
                     id="a part without its whole"),
        pytest.param(_HEAD + 'input = 1\nas_of = "soon"', "price[1].as_of: 'soon' is no day; write it like 2026-11-01",
                     id="no day"),
        pytest.param(_HEAD + "input = 1\nfrom = 2026-11-01T10:00:00", "price[1].from: ", id="a time of day"),
        pytest.param(_HEAD + "input = 1\nabove = 3", "price[1].above: write [[price.above]]", id="no tiers"),
        pytest.param(_HEAD + "input = 1\n[[price.above]]\ninput = 2", "price[1].above[1].input_tokens: missing",
                     id="a tier without its start"),
        pytest.param(_HEAD + "input = 1\n[[price.above]]\ninput_tokens = 9\ninput = 2\n[[price.above]]\n"
                     "input_tokens = 9\ninput = 3", "price[1].above[2].input_tokens: 9; write a whole number above 9",
                     id="tiers out of order"),
        pytest.param(_HEAD + "input = 1\n[[price.above]]\ninput_tokens = 9\noutput = 2",
                     "price[1].above[1]: output_tokens has no price below the tier", id="a tier of nothing"),
        pytest.param(_HEAD + "input = 1\n" + _HEAD, "price[2]: no price", id="the second entry"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_place_its_value_and_what_would_be_right(text: str, message: str) -> None:
    with pytest.raises(BadOverrides) as raised:
        parse_overrides(text)
    assert message in str(raised.value)
