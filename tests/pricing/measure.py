"""Microseconds per event, on recorded exchanges: `python -m tests.pricing.measure`. Not a test, since machines differ.

Two kinds of line: reading an answer alone, and the whole of `pricing` (answer, settling, price, cost).
"""

import time
from collections.abc import Callable

from pricing.answer import read_answer
from pricing.cost import cost
from pricing.prices import PriceBook
from pricing.settle import settle
from tests.pricing.conftest import Exchange, read_exchanges

_AT_MS = 1_795_000_000_000
_GENAI_IDS = {"bedrock": "aws", "vertex": "google", "voyage": "voyageai"}


def best_us(work: Callable[[], object], repeats: int) -> float:
    """Microseconds of one call, in the best of nine rounds."""
    rounds = []
    for _ in range(9):
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        rounds.append((time.perf_counter() - began) / repeats)
    return min(rounds) * 1e6


def measure(exchange: Exchange, book: PriceBook) -> tuple[float, float]:
    def answer() -> object:
        return read_answer(exchange.api, exchange.body, stream=exchange.stream, content_type=exchange.content_type)

    def whole() -> object:
        said = read_answer(exchange.api, exchange.body, stream=exchange.stream, content_type=exchange.content_type)
        model = said.model or exchange.model_requested
        settled = settle(
            exchange.api,
            provider=exchange.provider,
            model=model,
            status=exchange.status,
            answer=said,
            request_body=exchange.request,
        )
        genai_id = _GENAI_IDS.get(exchange.provider, exchange.provider)
        price = book.find(provider=exchange.provider, genai_prices_id=genai_id, model=model)
        return cost(price, settled.usage, at_ms=_AT_MS)

    repeats = 200 if len(exchange.body) > 20_000 else 2_000
    return best_us(answer, repeats), best_us(whole, repeats)


def main() -> None:
    book = PriceBook()
    shown: set[tuple[str, bool, bool]] = set()
    print(f"{'api':<26}{'':<8}{'bytes':>8}{'usage':>10}{'answer µs':>12}{'whole µs':>12}")
    for exchange in sorted(read_exchanges(), key=lambda e: (e.stream, e.api)):
        kind = (exchange.api, exchange.stream, bool(exchange.usage))
        if exchange.status != 200 or kind in shown or not (exchange.stream or 1_200 < len(exchange.body) < 2_600):
            continue
        shown.add(kind)
        answer_us, whole_us = measure(exchange, book)
        stream, usage = ("stream" if exchange.stream else ""), ("reported" if exchange.usage else "")
        print(f"{exchange.api:<26}{stream:<8}{len(exchange.body):>8}{usage:>10}{answer_us:>12.1f}{whole_us:>12.1f}")


if __name__ == "__main__":
    main()
