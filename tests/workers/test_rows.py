"""What a row says of a call, for real exchanges and for each rule that is ours."""

import base64
import itertools
import json
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from pricing.overrides import parse_overrides
from pricing.prices import PriceBook
from schemas.apis import model_in_path
from schemas.event import Attempt, Body, Event, Reading, Usage
from schemas.ids import new_id
from tests.exchanges import recorded
from tests.workers.case import Case, once
from workers.enrich import enrich
from workers.rows import DAY_MS, Poison, rows_of, window_at
from workers.store import ATTEMPTS, BODIES, REQUESTS

NOW_MS = time.time_ns() // 1_000_000
WINDOW = window_at(NOW_MS, keep_days=90)

Row = dict[str, Any]


def exchanges() -> list[dict[str, Any]]:
    return list(recorded())


def event_of(exchange: dict[str, Any], **changes: Any) -> Event:
    """A recorded exchange as the edge would have told it."""
    body, sent = exchange["response_body"] or "", exchange["request_body"]
    response = base64.b64decode(body) if exchange.get("encoding") == "base64" else body.encode()
    request = sent.encode() if isinstance(sent, str) else json.dumps(sent).encode()
    status = exchange["status"]
    fields: dict[str, Any] = {
        "id": new_id(NOW_MS),
        "created_ms": NOW_MS,
        "project_id": "p",
        "provider": exchange["provider"],
        "api": exchange["api"],
        "method": exchange["method"],
        "path": exchange["path"],
        "requested_model": exchange["model_requested"] or model_in_path(exchange["path"]),
        "stream": exchange["stream"],
        "status": status,
        "outcome": "success" if status < 400 else "error",
        "latency_ms": 700.0,
        "request": Body(size=len(request), head=request),
        "request_type": "application/json",
        "response": Body(size=len(response), head=response),
        "response_type": (exchange["response_headers"].get("content-type") or "").split(";")[0],
        "attempts": [Attempt(provider=exchange["provider"], started_ms=NOW_MS, latency_ms=699.0, status=status)],
    }
    return Event(**{**fields, **changes})


def row_of(event: Event, prices: PriceBook) -> Row:
    return dict(zip(REQUESTS.columns, rows_of(event, prices=prices, window=WINDOW).request, strict=True))


def chat(answer: bytes | None = None, **changes: Any) -> Event:
    """An OpenAI chat call of 1,000 tokens in and 100 out, unless `answer` says otherwise."""
    body = (
        b'{"object":"chat.completion","model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":{"role":"assistant",'
        b'"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1000,"completion_tokens":100}}'
    )
    exchange = {
        "provider": "openai",
        "api": "openai.chat",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model_requested": "gpt-4o",
        "stream": False,
        "status": 200,
        "request_body": {"model": "gpt-4o", "messages": [{"role": "user", "content": "How are you?"}]},
        "response_headers": {"content-type": "application/json"},
        "response_body": (body if answer is None else answer).decode(),
    }
    return event_of(exchange, **changes)


def _anthropic(usage: dict[str, Any]) -> tuple[int, int]:
    cached = (usage.get("cache_read_input_tokens") or 0) + (usage.get("cache_creation_input_tokens") or 0)
    return usage["input_tokens"] + cached, usage["output_tokens"]


# The counts as each provider documents them, for the recorded usage of plain calls.
_TOKENS: dict[str, Callable[[dict[str, Any]], tuple[int, int]]] = {
    "openai.chat": lambda u: (u["prompt_tokens"], u["completion_tokens"]),
    "openai.responses": lambda u: (u["input_tokens"], u["output_tokens"]),
    "anthropic.messages": _anthropic,
    "gemini.generate": lambda u: (
        u["promptTokenCount"] + u.get("toolUsePromptTokenCount", 0),
        u.get("candidatesTokenCount", 0) + u.get("thoughtsTokenCount", 0),
    ),
    "bedrock.converse": lambda u: (u["inputTokens"], u["outputTokens"]),
}


def _plain() -> list[Any]:
    found = []
    for api in _TOKENS:
        fitting = (e for e in exchanges() if e["api"] == api and e["status"] == 200 and e["usage"])
        if api == "openai.chat":
            fitting = (e for e in fitting if e["provider"] == "openai")
        found += [pytest.param(e, id=f"{api} {e['id'][:6]}") for e in itertools.islice(fitting, 6)]
    return found


@pytest.mark.parametrize("exchange", _plain())
def test_a_real_answer_gives_its_model_stop_reason_tokens_and_a_cost(
    exchange: dict[str, Any], prices: PriceBook
) -> None:
    event = event_of(exchange)

    row = row_of(event, prices)

    assert row["model"] == (exchange["model_answered"] or event.requested_model)
    if exchange["stop_reason"] is not None:
        assert row["stop_reason"] == exchange["stop_reason"]
    assert row["usage_source"] == "reported"
    assert (row["input_tokens"], row["output_tokens"]) == _TOKENS[exchange["api"]](exchange["usage"])
    assert row["cost_usd"] is None or row["cost_usd"] > 0
    assert (row["cost_usd"] is None) == (row["cost_source"] == "")
    assert row["outcome"] == "success"


def test_every_real_exchange_becomes_a_row(case: Case) -> None:
    recorded = exchanges()

    confirmation = enrich(case.batch([event_of(e, project_id=case.project) for e in recorded]), case.services())

    assert (confirmation.rows, confirmation.dead_lettered) == (len(recorded), 0)
    assert case.counts() == once(len(recorded))
    ((failed, priced),) = case.query(
        "SELECT countIf(outcome = 'error'), countIf(cost_usd > 0) FROM requests WHERE project_id = %(project)s"
    )
    assert failed >= sum(e["status"] >= 400 for e in recorded)
    assert priced > len(recorded) / 2  # type: ignore[operator]


def test_an_errors_code_and_message_are_the_providers(prices: PriceBook) -> None:
    body = b'{"error":{"message":"Rate limit reached","type":"requests","param":null,"code":"rate_limit_exceeded"}}'

    row = row_of(chat(body, status=429, outcome="error"), prices)

    assert (row["outcome"], row["error_code"], row["error_message"]) == (
        "error",
        "rate_limit_exceeded",
        "Rate limit reached",
    )
    assert (row["usage_source"], row["input_tokens"], row["cost_usd"]) == ("none", None, None)


def test_an_error_event_inside_a_good_stream_makes_the_outcome_an_error(prices: PriceBook) -> None:
    stream = (
        b'data: {"object":"chat.completion.chunk","model":"gpt-4o","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
        b'data: {"error":{"message":"The server had an error","type":"server_error","code":null}}\n\n'
    )

    row = row_of(chat(stream, stream=True, response_type="text/event-stream"), prices)

    assert (row["outcome"], row["status"], row["error_code"]) == ("error", 200, "server_error")


def test_a_cut_stream_keeps_its_outcome_has_no_stop_reason_and_counts_what_came(prices: PriceBook) -> None:
    stream = (
        b'data: {"object":"chat.completion.chunk","model":"gpt-4o","choices":[{"index":0,"delta":'
        b'{"content":"one two three"},"finish_reason":null}]}\n\n'
    )

    row = row_of(chat(stream, stream=True, response_type="text/event-stream"), prices)

    assert (row["outcome"], row["stop_reason"]) == ("success", "")
    assert row["usage_source"] in ("counted", "estimated")
    assert row["output_tokens"] == 3
    assert row["cost_usd"] > 0


def test_an_override_of_the_model_is_recorded_and_priced(prices: PriceBook) -> None:
    answered, overridden = row_of(chat(), prices), row_of(chat(model_override="gpt-4o-mini"), prices)

    assert (answered["model"], overridden["model"]) == ("gpt-4o-2024-08-06", "gpt-4o-mini")
    assert answered["requested_model"] == overridden["requested_model"] == "gpt-4o"
    assert answered["cost_usd"] == Decimal("0.0035")
    assert overridden["cost_usd"] == Decimal("0.00021")


def test_the_requested_model_stands_where_the_answer_names_none(prices: PriceBook) -> None:
    answer = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":100}}'

    assert row_of(chat(answer), prices)["model"] == "gpt-4o"


def test_an_unknown_models_cost_is_unknown_and_its_tokens_are_not(prices: PriceBook) -> None:
    row = row_of(chat(model_override="nobody's-model"), prices)

    assert (row["cost_usd"], row["cost_source"], row["prices_as_of"]) == (None, "", "")
    assert (row["input_tokens"], row["output_tokens"]) == (1000, 100)


def test_an_unknown_providers_cost_is_unknown(prices: PriceBook) -> None:
    assert row_of(chat(provider="llm.example.com"), prices)["cost_usd"] is None


def test_a_price_of_the_users_own_holds(prices: PriceBook) -> None:
    own = parse_overrides('[[price]]\nprovider = "openai"\nmodel = "gpt-4o*"\ninput = 1\noutput = 10\n')

    row = row_of(chat(), PriceBook(own))

    assert (row["cost_usd"], row["cost_source"]) == (Decimal("0.002"), "override")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"outcome": "refused", "status": 429, "attempts": []}, id="refused by us"),
        pytest.param(
            {"outcome": "error", "status": 502, "attempts": [Attempt("openai", NOW_MS, 1.0, None, "unreachable")]},
            id="no provider answered",
        ),
        pytest.param({"response": None}, id="no answer kept"),
        pytest.param({"response": Body(size=9, left_out="spool_full")}, id="left out"),
    ],
)
def test_where_nothing_was_answered_nothing_is_known(changes: dict[str, Any], prices: PriceBook) -> None:
    row = row_of(chat(**changes), prices)

    assert (row["usage_source"], row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (
        "none",
        None,
        None,
        None,
    )
    assert row["model"] == "gpt-4o"


def test_a_call_answered_by_a_second_provider_counts(prices: PriceBook) -> None:
    attempts = [
        Attempt("openai", NOW_MS, 5.0, None, "upstream_timeout"),
        Attempt("openai", NOW_MS + 5, 700.0, 200),
    ]
    made = rows_of(chat(attempts=attempts), prices=prices, window=WINDOW)

    assert made.request[REQUESTS.columns.index("input_tokens")] == 1000
    number, reason, status = (ATTEMPTS.columns.index(name) for name in ("number", "reason", "status"))
    assert [(a[number], a[reason], a[status]) for a in made.attempts] == [(1, "upstream_timeout", None), (2, "", 200)]


def test_a_cache_hit_keeps_its_tokens_and_costs_nothing(prices: PriceBook) -> None:
    row = row_of(chat(cache_status="hit", attempts=[]), prices)

    assert (row["cost_usd"], row["cost_source"]) == (Decimal(0), "cache")
    assert (row["usage_source"], row["input_tokens"]) == ("reported", 1000)


_STORED_CHAT = "/v1/chat/completions/chatcmpl-1"
_STORED_RESPONSE = (
    b'{"object":"response","id":"resp_1","status":"completed","model":"gpt-4o-2024-08-06","background":%s,"output":[],'
    b'"usage":{"input_tokens":1000,"output_tokens":100,"total_tokens":1100}}'
)


def response(*, background: bool = False, **changes: Any) -> Event:
    """A call of the Responses API whose answer reports 1,000 tokens in and 100 out."""
    fields = {"api": "openai.responses", "path": "/v1/responses/resp_1", "requested_model": None, **changes}
    return chat(_STORED_RESPONSE % (b"true" if background else b"false"), **fields)


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(response(method="GET"), id="a response fetched"),
        pytest.param(response(method="DELETE"), id="a response deleted"),
        pytest.param(
            response(method="POST", path="/v1/responses/resp_1/cancel", api="other", background=True),
            id="a response cancelled",
        ),
        pytest.param(chat(method="GET", path=_STORED_CHAT, api="other"), id="a completion fetched"),
        pytest.param(chat(method="POST", path=_STORED_CHAT, api="other"), id="a completion's metadata changed"),
        pytest.param(
            chat(
                method="GET",
                path=_STORED_CHAT,
                reading=Reading(
                    model="gpt-4o-2024-08-06",
                    usage=Usage("reported", 1000, 100),
                    counts={"input_tokens": 1000, "output_tokens": 100},
                    cost_usd="0.00123",
                    cost_source="provider",
                ),
            ),
            id="a completion fetched, its body left out",
        ),
    ],
)
def test_a_call_that_reads_or_manages_a_stored_answer_used_nothing_of_its_own(event: Event, prices: PriceBook) -> None:
    row = row_of(event, prices)

    assert (row["usage_source"], row["input_tokens"], row["output_tokens"]) == ("none", None, None)
    assert (row["cost_usd"], row["cost_source"], row["prices_as_of"]) == (None, "", "")
    assert (row["model"], row["outcome"]) == ("gpt-4o-2024-08-06", "success")


def test_one_generation_is_counted_once_however_often_it_is_fetched_and_managed(case: Case) -> None:
    made = response(method="POST", path="/v1/responses", project_id=case.project)
    fetched = [response(method="GET", project_id=case.project) for _ in range(3)]
    cancelled = response(method="POST", path="/v1/responses/resp_1/cancel", api="other", project_id=case.project)

    enrich(case.batch([made, *fetched, cancelled]), case.services())

    sums = "count(), sum(input_tokens), sum(output_tokens), sum(cost_usd)"
    assert case.query(f"SELECT {sums} FROM requests WHERE project_id = %(project)s") == [
        (5, 1000, 100, Decimal("0.0035"))
    ]


def test_a_stored_answer_that_names_no_usage_is_not_counted_by_us(prices: PriceBook) -> None:
    answer = b'{"object":"chat.completion","model":"gpt-4o","choices":[{"index":0,"message":{"content":"hi there"}}]}'

    assert row_of(chat(answer, method="GET", path=_STORED_CHAT), prices)["usage_source"] == "none"


def test_a_recorded_fetch_of_a_background_response_shows_its_tokens_and_no_cost(prices: PriceBook) -> None:
    """The POST that began it could name none."""
    recorded = {exchange["id"][:8]: exchange for exchange in exchanges()}
    fetched, begun = (row_of(event_of(recorded[id_]), prices) for id_ in ("81bfde25", "893a8922"))

    assert (fetched["method"], fetched["usage_source"]) == ("GET", "reported")
    assert (fetched["input_tokens"], fetched["output_tokens"]) == _TOKENS["openai.responses"](
        recorded["81bfde25"]["usage"]
    )
    assert (fetched["cost_usd"], fetched["cost_source"]) == (None, "")
    assert (begun["method"], begun["usage_source"], begun["cost_usd"]) == ("POST", "none", None)


def test_a_background_response_fetched_as_a_stream_shows_its_tokens_and_no_cost(prices: PriceBook) -> None:
    stream = b'data: {"type":"response.completed","response":%s}\n\n' % (_STORED_RESPONSE % b"true")

    row = row_of(response(method="GET", stream=True, response_type="text/event-stream", response=Body(
        size=len(stream), head=stream
    )), prices)  # fmt: skip

    assert (row["usage_source"], row["input_tokens"], row["cost_usd"]) == ("reported", 1000, None)


def test_what_every_recorded_answer_reports_is_in_its_row(prices: PriceBook) -> None:
    without = [
        exchange["id"]
        for exchange in exchanges()
        if exchange["usage"] and row_of(event_of(exchange), prices)["usage_source"] == "none"
    ]
    assert without == []


def test_a_reading_of_the_edge_takes_the_bodies_place(prices: PriceBook) -> None:
    reading = Reading(
        model="gpt-4o-2024-08-06",
        stop_reason="length",
        usage=Usage("reported", 1000, 100),
        cost_usd="0.00123",
        cost_source="provider",
        prices_as_of="2026-11-01",
    )

    row = row_of(chat(reading=reading, response=Body(size=900, left_out="asked")), prices)

    assert (row["model"], row["stop_reason"], row["input_tokens"]) == ("gpt-4o-2024-08-06", "length", 1000)
    assert (row["cost_usd"], row["cost_source"], row["prices_as_of"]) == (
        Decimal("0.00123"),
        "provider",
        "2026-11-01",
    )
    assert row["response_bytes"] == 900


def test_a_reading_without_a_cost_is_priced_here(prices: PriceBook) -> None:
    reading = Reading(model="gpt-4o-2024-08-06", usage=Usage("reported", 1000, 100))

    assert row_of(chat(reading=reading, response=None), prices)["cost_usd"] == Decimal("0.0035")


def test_an_error_that_the_edge_read_makes_the_outcome_an_error(prices: PriceBook) -> None:
    row = row_of(chat(reading=Reading(error_code="overloaded_error"), response=None), prices)

    assert (row["outcome"], row["error_code"]) == ("error", "overloaded_error")


@pytest.mark.parametrize("cost", ["NaN", "-1", "1e30", "a lot"])
def test_a_cost_that_is_none_is_not_known(cost: str, prices: PriceBook) -> None:
    reading = Reading(model="m", cost_usd=cost, cost_source="provider")

    row = row_of(chat(reading=reading, response=None), prices)

    assert (row["cost_usd"], row["cost_source"]) == (None, "")


def test_a_count_beyond_its_column_is_not_known(prices: PriceBook) -> None:
    answer = b'{"model":"gpt-4o","choices":[],"usage":{"prompt_tokens":99999999999,"completion_tokens":5}}'

    row = row_of(chat(answer), prices)

    assert (row["input_tokens"], row["output_tokens"]) == (None, 5)


def test_bodies_are_kept_as_bytes_with_their_holes(case: Case) -> None:
    request = Body(size=10, head=b"\xff\x00\xfe", tail=b"\xc3")
    response = Body(size=5, left_out="asked")
    event = case.event(request=request, response=response, request_type="application/json", response_type=None)

    enrich(case.batch([event]), case.services())

    columns = ", ".join(f"hex({name})" if name in ("request", "request_tail") else name for name in BODIES.columns[3:])
    (found,) = case.query(f"SELECT {columns} FROM bodies WHERE project_id = %(project)s")
    assert found == ("FF00FE", "C3", "", "application/json", "", "", "", "asked", "", "")


def test_a_row_holds_all_that_the_event_says(case: Case) -> None:
    event = case.event(
        key_id="k1",
        key_name="my key",
        stream=False,
        first_token_ms=12.5,
        name="greeting",
        user_id="u1",
        session_id="s1",
        session_path="/a/b",
        session_name="chat",
        trace_id="0af7",
        span_id="b7ad",
        parent_id="00f0",
        properties={"Environment": "production", "ünï": "✓"},
        features={"helicone-prompt-id": "p"},
        cache_status="miss",
    )

    enrich(case.batch([event]), case.services())

    row = case.row()
    assert str(row.pop("id")) == event.id
    assert row.pop("created_at").timestamp() * 1000 == pytest.approx(event.created_ms)  # type: ignore[attr-defined]
    row.pop("inserted_at")
    assert row == {
        "project_id": case.project, "key_id": "k1", "key_name": "my key", "provider": "openai", "api": "openai.chat",
        "method": "POST", "path": "/v1/chat/completions", "requested_model": "gpt-4o", "model": "gpt-4o-2024-08-06",
        "stream": False, "status": 200, "outcome": "success", "error_code": "", "error_message": "",
        "stop_reason": "stop", "name": "greeting", "user_id": "u1", "session_id": "s1", "session_path": "/a/b",
        "session_name": "chat", "trace_id": "0af7", "span_id": "b7ad", "parent_id": "00f0",
        "properties": {"Environment": "production", "ünï": "✓"}, "features": {"helicone-prompt-id": "p"},
        "usage_source": "reported", "input_tokens": 100, "output_tokens": 20, "cache_read_tokens": None,
        "cache_write_tokens": None, "reasoning_tokens": None, "input_audio_tokens": None, "output_audio_tokens": None,
        "cost_usd": Decimal("0.00045"), "cost_source": row["cost_source"], "prices_as_of": row["prices_as_of"],
        "latency_ms": 800.0, "first_token_ms": 12.5, "overhead_ms": 0.5, "cache_status": "miss",
        "request_bytes": event.request.size if event.request else 0,
        "response_bytes": event.response.size if event.response else 0,
    }  # fmt: skip
    assert str(row["cost_source"]).startswith("genai-prices ")


def test_what_may_be_stored_moves_at_midnight_alone() -> None:
    """A batch that is tried twice within a day is judged alike."""
    midnight_ms = 20_000 * DAY_MS

    assert window_at(midnight_ms, keep_days=90) == window_at(midnight_ms + DAY_MS - 1, keep_days=90)
    assert window_at(midnight_ms, keep_days=90) == (midnight_ms - 90 * DAY_MS, midnight_ms + 2 * DAY_MS)


def test_three_hundred_attempts_are_more_than_can_be_numbered(prices: PriceBook) -> None:
    with pytest.raises(Poison, match="attempts"):
        rows_of(chat(attempts=[Attempt("openai", NOW_MS, 1.0, 500)] * 300), prices=prices, window=WINDOW)
