"""Every recorded exchange, through the running house: bytes identical, rows true. `make exchanges` prints the table."""

import asyncio
import base64
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.e2e.house import Answer, House, Replay
from tests.exchanges import recorded
from tests.pricing.conftest import Exchange, read_exchanges
from tests.pricing.test_exchanges import expected

_FRAMING = ("content-length", "transfer-encoding", "content-encoding", "connection")
_CLASSES = (
    "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens",
    "input_audio_tokens", "output_audio_tokens",
)  # fmt: skip


def _answers() -> dict[str, tuple[dict[str, Any], Answer]]:
    found = {}
    for raw in recorded():
        body = raw["response_body"] or ""
        data = base64.b64decode(body) if raw.get("encoding") == "base64" else body.encode()
        headers = {k: v for k, v in raw["response_headers"].items() if k.lower() not in _FRAMING}
        found[raw["id"]] = (raw, Answer(raw["status"], headers, data, stream=bool(raw["stream"])))
    return found


async def test_every_exchange_passes_unchanged_and_becomes_a_true_row(
    house: House, replay: Replay, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = _answers()
    replay.answers = {id_: answer for id_, (_, answer) in answers.items()}
    exchanges = list(read_exchanges())
    ids: dict[str, str] = {}
    changed = []
    limit = asyncio.Semaphore(16)

    async def send(client: httpx.AsyncClient, exchange: Exchange) -> None:
        raw, answer = answers[exchange.id]
        headers = {
            k: v for k, v in raw["request_headers"].items() if k.lower() not in (*_FRAMING, "host", "accept-encoding")
        }
        headers |= {"x-exchange": exchange.id, "helicone-property-exchange": exchange.id}
        body = exchange.request if raw["request_body"] not in (None, "") else None
        url = f"{house.edge}/{exchange.provider}{exchange.path}"
        async with limit, client.stream(raw["method"], url, content=body, headers=headers) as got:
            received = b"".join([piece async for piece in got.aiter_raw()])
        if (received, got.status_code) != (answer.body, answer.status):
            changed.append(exchange.id)
        ids[exchange.id] = got.headers["helicone-id"]

    async with httpx.AsyncClient(timeout=30) as client:
        await asyncio.gather(*(send(client, exchange) for exchange in exchanges))
    assert changed == []

    def stored() -> dict[str, dict[str, Any]]:
        rows = house.sql(
            "SELECT properties['exchange'], model, usage_source, "
            + ", ".join(_CLASSES)
            + ", cost_usd, outcome FROM requests WHERE properties['exchange'] != ''"
        )
        names = ("id", "model", "source", *_CLASSES, "cost", "outcome")
        return {row[0]: dict(zip(names, row, strict=True)) for row in rows}

    rows = await asyncio.to_thread(
        house.wait_for,
        lambda: (found := stored()) and len(found) == len(exchanges) and found,
        timeout_s=30,
        what="all rows",
    )
    wrong: list[tuple[object, ...]] = []
    table: dict[str, Counter[str]] = {}
    for exchange in exchanges:
        row = rows[exchange.id]
        counts = table.setdefault(exchange.provider, Counter())
        counts[row["source"]] += 1
        counts["priced" if row["cost"] is not None else "unpriced"] += 1
        if exchange.model_answered and row["model"] != exchange.model_answered:
            wrong.append((exchange.id, "model", exchange.model_answered, row["model"]))
        if exchange.usage:
            if row["source"] == "none":
                wrong.append((exchange.id, "source", "reported", row["source"]))
            for name, count in expected(exchange).items():
                if name in _CLASSES and row["source"] == "reported" and row[name] != count:
                    wrong.append((exchange.id, name, count, row[name]))
        silent = (
            not exchange.usage and exchange.stream and exchange.status == 200 and exchange.api.startswith("openai.")
        )
        if silent and (row["source"] not in ("counted", "estimated") or not row["output_tokens"]):
            wrong.append((exchange.id, "source", "counted or estimated", row["source"]))
        if exchange.status >= 400 and row["outcome"] != "error":
            wrong.append((exchange.id, "outcome", "error", row["outcome"]))
    with capsys.disabled():
        _print(table)
    assert wrong == []


def _print(table: dict[str, Counter[str]]) -> None:
    columns = ("reported", "counted", "estimated", "none", "priced", "unpriced")
    print(f"\n{'provider':<14}" + "".join(f"{column:>11}" for column in columns))
    total: Counter[str] = Counter()
    for provider, counts in sorted(table.items()):
        total += counts
        print(f"{provider:<14}" + "".join(f"{counts[column]:>11}" for column in columns))
    print(f"{'all':<14}" + "".join(f"{total[column]:>11}" for column in columns))
