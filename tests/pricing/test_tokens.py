"""Counting tokens: known counts, what is exact, and bounds."""

import pytest

from pricing import tokens
from pricing.prompt import Prompt, Turn
from pricing.tokens import CHARS_MAX, count_output, count_prompt, count_texts, family_of


@pytest.mark.parametrize(
    ("model", "encoding", "is_own", "hides_reasoning"),
    [
        ("gpt-4o-2024-08-06", "o200k_base", True, False),
        ("openai/gpt-4.1-mini", "o200k_base", True, False),
        ("ft:gpt-4o-mini:acme::x", "o200k_base", True, False),
        ("gpt-4-0613", "cl100k_base", True, False),
        ("gpt-35-turbo", "cl100k_base", True, False),
        ("text-embedding-3-large", "cl100k_base", True, False),
        ("davinci:2023-07-21-v2", "cl100k_base", True, False),
        ("o3-mini", "o200k_base", True, True),
        ("gpt-5.4-mini", "o200k_base", True, True),
        ("gpt-5-chat-latest", "o200k_base", True, False),
        ("gpt-oss-120b", "o200k_base", False, False),
        ("openai/gpt-oss-20b", "o200k_base", False, False),
        ("claude-sonnet-4-5", "o200k_base", False, False),
        ("something-new", "o200k_base", False, False),
    ],
)
def test_each_family_has_its_tokenizer(model: str, encoding: str, is_own: bool, hides_reasoning: bool) -> None:
    family = family_of(model)
    assert (family.encoding, family.is_own, family.hides_reasoning) == (encoding, is_own, hides_reasoning)


def test_openais_counts_are_exact() -> None:
    assert count_output("gpt-4o", ["hello world"]) == (2, True)
    assert count_output("gpt-4", ["tiktoken is great!"]) == (6, True)  # the example of OpenAI's cookbook


def test_openais_chat_overhead_is_counted() -> None:
    prompt = Prompt(turns=(Turn("system", None, ("You are a helpful assistant.",)), Turn("user", None, ("Hi",))))
    assert count_prompt("gpt-4o", prompt) == (6 + 1 + 1 + 1 + 2 * 3 + 3, True)
    named = Prompt(turns=(Turn("user", "ann", ("Hi",)),))
    plain = Prompt(turns=(Turn("user", None, ("Hi",)),))
    assert count_prompt("gpt-4o", named).tokens - count_prompt("gpt-4o", plain).tokens == 2


def test_special_tokens_in_text_are_text() -> None:
    assert count_output("gpt-4o", ["<|endoftext|>"]).tokens > 1


def test_half_a_surrogate_pair_is_counted() -> None:
    assert count_output("gpt-4o", ["a\ud83db"]).tokens > 1


def test_a_long_text_is_extrapolated_and_so_an_estimate() -> None:
    text = "a few words here. " * (3 * CHARS_MAX // 18)
    found = count_texts(family_of("gpt-4o"), [text])
    assert not found.is_exact
    assert found.tokens == pytest.approx(len(text) / 18 * 5, rel=0.02)


def test_no_more_than_the_bound_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Recording:
        def count(self, text: str) -> int:
            seen.append(text)
            return len(text)

    monkeypatch.setattr(tokens, "_encoding", lambda name: Recording())
    found = count_texts(family_of("gpt-4o"), ["🦙" * 1_000_000, "a" * 5_000_000])
    assert sum(map(len, seen)) == CHARS_MAX
    assert found.tokens == 6_000_000


def test_many_small_texts_are_bounded() -> None:
    found = count_texts(family_of("gpt-4o"), ["ab"] * 100_000)
    assert found.tokens == 100_000
    assert not found.is_exact


def test_without_the_tokenizer_everything_is_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_encoding", lambda name: None)
    assert count_output("gpt-4o", ["four char"]) == (3, False)
