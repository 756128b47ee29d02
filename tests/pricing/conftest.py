"""Recorded exchanges (`../shared/exchanges`, beside the repository), as fixtures."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pricing.answer import Answer, read_answer
from pricing.prices import PriceBook
from tests.exchanges import recorded


class Exchange(NamedTuple):
    id: str
    provider: str
    api: str
    path: str
    status: int
    stream: bool
    content_type: str
    request: bytes
    body: bytes
    model_requested: str | None
    model_answered: str | None
    stop_reason: str | None
    usage: dict[str, Any] | None

    def answer(self) -> Answer:
        return read_answer(self.api, self.body, stream=self.stream, content_type=self.content_type)


def _exchange(raw: dict[str, Any]) -> Exchange:
    body = raw["response_body"] or ""
    request = raw["request_body"]
    return Exchange(
        id=raw["id"],
        provider=raw["provider"],
        api=raw["api"],
        path=raw["path"],
        status=raw["status"],
        stream=raw["stream"],
        content_type=raw["response_headers"].get("content-type") or "",
        request=request.encode() if isinstance(request, str) else json.dumps(request).encode(),
        body=base64.b64decode(body) if raw.get("encoding") == "base64" else body.encode(),
        model_requested=raw["model_requested"],
        model_answered=raw["model_answered"],
        stop_reason=raw["stop_reason"],
        usage=raw["usage"],
    )


def read_exchanges() -> Iterator[Exchange]:
    yield from map(_exchange, recorded())


@pytest.fixture(scope="session")
def exchanges() -> list[Exchange]:
    return list(read_exchanges())


@pytest.fixture(scope="session")
def book() -> PriceBook:
    return PriceBook()


@pytest.fixture(scope="session")
def genai_ids() -> dict[str, str | None]:
    """genai-prices' id by ours, from the catalogue (read here: pricing itself never does)."""
    catalogue = json.loads((Path(__file__).parents[2] / "schemas" / "providers.json").read_text())
    return {entry["id"]: entry["genai_prices_id"] for entry in catalogue}
