"""How fast one worker process brings events into ClickHouse: read, unpack, usage, price, insert, ledger; all on.

    python -m load_tests.enrichment [--events 40000] [--batch 2000] [--profile]

Events are OpenAI chat calls with bodies of about 1.5 KB, a third of them streams, written to a real spool and read back
with the real reader; the store is the embedded ClickHouse, a process of its own. "Per core" is by the CPU time of this
process, which is what a worker process is; by the clock it also waits for ClickHouse. The budget is in design.md §5.
"""

import argparse
import cProfile
import json
import pstats
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from ingest.log import Record
from pricing.prices import PriceBook
from schemas.batch import Batch
from schemas.event import Attempt, Body, Event, pack
from schemas.ids import new_id
from workers import metrics
from workers.enrich import Services, enrich
from workers.store import Store

WORDS = (
    "gateway record every token cost model answer stream usage price ledger batch spool event provider request "
    "latency cache limit retry route key prompt session user trace partition offset worker planner"
).split()


def make_event(number: int, dice: random.Random, now_ms: int) -> Event:
    """A finished OpenAI chat call; every third one a stream."""
    stream = number % 3 == 0
    model = dice.choice(["gpt-4o-mini", "gpt-4o", "gpt-4.1"])
    asked = {
        "model": model,
        "messages": [
            {"role": "system", "content": _words(dice, 60)},
            {"role": "user", "content": _words(dice, 90)},
        ],
        "temperature": 0.2,
        **({"stream": True, "stream_options": {"include_usage": True}} if stream else {}),
    }
    request = json.dumps(asked).encode()
    response = _streamed(model, dice) if stream else _plain(model, dice)
    return Event(
        id=new_id(now_ms),
        created_ms=now_ms - dice.randrange(5000),
        project_id=f"project-{number % 5}",
        key_id=f"key-{number % 20}",
        key_name=f"key {number % 20}",
        provider="openai",
        api="openai.chat",
        method="POST",
        path="/v1/chat/completions",
        requested_model=model,
        stream=stream,
        status=200,
        outcome="success",
        latency_ms=dice.random() * 2000,
        first_token_ms=dice.random() * 500 if stream else None,
        overhead_ms=0.3,
        user_id=f"user-{dice.randrange(500)}",
        session_id=f"session-{dice.randrange(200)}",
        properties={"environment": "production", "feature": f"f{number % 7}"},
        request=Body(size=len(request), head=request),
        request_type="application/json",
        response=Body(size=len(response), head=response),
        response_type="text/event-stream" if stream else "application/json",
        attempts=[Attempt(provider="openai", started_ms=now_ms, latency_ms=700.0, status=200)],
    )


def _words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choices(WORDS, k=count))


def _usage(dice: random.Random) -> dict[str, object]:
    sent, answered = dice.randrange(50, 400), dice.randrange(20, 300)
    return {
        "prompt_tokens": sent,
        "completion_tokens": answered,
        "total_tokens": sent + answered,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _plain(model: str, dice: random.Random) -> bytes:
    message = {"role": "assistant", "content": _words(dice, 130), "refusal": None}
    return json.dumps(
        {
            "id": "chatcmpl-" + "x" * 29,
            "object": "chat.completion",
            "created": 1_790_000_000,
            "model": model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": _usage(dice),
            "service_tier": "default",
            "system_fingerprint": "fp_0123456789",
        }
    ).encode()


def _streamed(model: str, dice: random.Random) -> bytes:
    head = {"id": "c" * 20, "object": "chat.completion.chunk", "created": 1_790_000_000, "model": model}
    chunks = [
        {**head, "choices": [{"index": 0, "delta": {"content": _words(dice, 5)}, "finish_reason": None}], "usage": None}
        for _ in range(5)
    ]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None})
    chunks.append({**head, "choices": [], "usage": _usage(dice)})
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
