"""How fast one worker process brings events into ClickHouse: read, unpack, usage, price, insert, ledger; all on.

    python -m load_tests.enrichment [--events 40000] [--batch 2000] [--kafka] [--profile]

Events are OpenAI chat calls with bodies of about 1.5 KB, a third of them streams, written to a real spool and read back
with the real reader; with --kafka they stand in a real Kafka, and are enriched twice, without publishing and with it.
The store is the embedded ClickHouse, a process of its own. "Per core" is by the CPU time of this
process, which is what a worker process is; by the clock it also waits for ClickHouse.
"""

import argparse
import asyncio
import cProfile
import json
import pstats
import random
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from aiokafka import AIOKafkaProducer

from ingest.kafka_client import connection
from ingest.kafka_publisher import KafkaPublisher
from ingest.kafka_reader import KafkaReader
from ingest.kafka_thread import KafkaThread
from ingest.migrations import migrate
from ingest.spool import open_spool
from ingest.spool_log import SpoolReader, partition_of
from ingest.topics import migrate_topics
from pricing.prices import PriceBook
from schemas.batch import Batch, Partition
from schemas.event import Attempt, Body, Event, pack
from schemas.ids import new_id
from schemas.settings import ClickHouseSettings, KafkaSettings, RetentionSettings, SpoolSettings
from tests.servers import running_clickhouse, running_kafka
from workers import metrics
from workers.enrich import Services, enrich
from workers.publish import Publisher
from workers.store import Store

WORDS = [
    "gateway", "record", "every", "token", "cost", "model", "answer", "stream", "usage", "price", "ledger", "batch",
    "spool", "event", "provider", "request", "latency", "cache", "limit", "retry", "route", "key", "prompt", "user",
]  # fmt: skip


def make_event(number: int, dice: random.Random, now_ms: int, words: Sequence[str] = WORDS) -> Event:
    """A finished OpenAI chat call; every third one a stream. Its texts are drawn from `words`."""
    stream = number % 3 == 0
    model = dice.choice(["gpt-4o-mini", "gpt-4o", "gpt-4.1"])
    asked = {
        "model": model,
        "messages": [
            {"role": "system", "content": _words(dice, words, 60)},
            {"role": "user", "content": _words(dice, words, 90)},
        ],
        "temperature": 0.2,
        **({"stream": True, "stream_options": {"include_usage": True}} if stream else {}),
    }
    request = json.dumps(asked).encode()
    response = _streamed(model, dice, words) if stream else _plain(model, dice, words)
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


def _words(dice: random.Random, words: Sequence[str], count: int) -> str:
    return " ".join(dice.choices(words, k=count))


def _usage(dice: random.Random) -> dict[str, object]:
    sent, answered = dice.randrange(50, 400), dice.randrange(20, 300)
    return {
        "prompt_tokens": sent,
        "completion_tokens": answered,
        "total_tokens": sent + answered,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _plain(model: str, dice: random.Random, words: Sequence[str]) -> bytes:
    message = {"role": "assistant", "content": _words(dice, words, 130), "refusal": None}
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


def _streamed(model: str, dice: random.Random, words: Sequence[str]) -> bytes:
    head = {"id": "c" * 20, "object": "chat.completion.chunk", "created": 1_790_000_000, "model": model}
    chunks = [
        {
            **head,
            "choices": [{"index": 0, "delta": {"content": _words(dice, words, 5)}, "finish_reason": None}],
            "usage": None,
        }
        for _ in range(5)
    ]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None})
    chunks.append({**head, "choices": [], "usage": _usage(dice)})
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


async def fill_spool(root: Path, count: int) -> Partition:
    """Make `count` events and write them as an edge does."""
    dice = random.Random(7)
    now_ms = time.time_ns() // 1_000_000
    spool = open_spool(root, SpoolSettings())
    for number in range(count):
        spool.append(pack(make_event(number, dice, now_ms)))
        if spool.crowded:
            await spool.room()
    await spool.close()
    return partition_of(spool.folder)


async def fill_kafka(kafka: KafkaSettings, count: int) -> Partition:
    """Make `count` events and put them all into the first partition."""
    dice = random.Random(7)
    now_ms = time.time_ns() // 1_000_000
    producer = AIOKafkaProducer(
        compression_type="zstd", max_batch_size=512 * 1024, max_request_size=kafka.record_bytes_max, **connection(kafka)
    )
    await producer.start()
    try:
        sent = [
            await producer.send(kafka.requests_topic, pack(make_event(number, dice, now_ms)), partition=0)
            for number in range(count)
        ]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()
    return Partition(kafka.requests_topic, 0)


class Figures(msgspec.Struct):
    events: int
    clock_s: float
    cpu_s: float
    steps: dict[str, float]
    """Seconds by the clock in each step."""


def measure(services: Services, where: Partition, *, events: int, batch: int) -> Figures:
    """Enrich the log's first `events` events in batches, as one worker process does. Closes the services."""
    cuts = range(batch, events, batch)
    enrich(Batch(where.topic, where.number, 0, batch - 1), services)  # connects, looks prices up
    before, started, cpu = _steps(), time.perf_counter(), time.process_time()
    for first in cuts:
        enrich(Batch(where.topic, where.number, first, min(first + batch, events) - 1), services)
    cpu_s, clock_s = time.process_time() - cpu, time.perf_counter() - started
    services.close()
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in _steps().items()}
    return Figures(events - batch, clock_s, cpu_s, spent)


def of_spool(settings: ClickHouseSettings, root: Path) -> Services:
    return Services(store=Store(settings), reader=SpoolReader(root), prices=PriceBook(), keep_days=90)


def of_kafka(settings: ClickHouseSettings, kafka: KafkaSettings) -> Services:
    thread = KafkaThread()
    return Services(
        store=Store(settings),
        reader=KafkaReader(kafka, thread),
        prices=PriceBook(),
        keep_days=90,
        publisher=Publisher(kafka, KafkaPublisher(kafka, thread)),
    )


def _steps() -> dict[str, float]:
    """Seconds spent so far, as the worker's own metrics have them."""
    spent: dict[str, float] = {}
    for histogram, label in ((metrics.step_seconds, "step"), (metrics.insert_seconds, "table")):
        for family in histogram.collect():
            for sample in family.samples:
                if sample.name.endswith("_sum"):
                    spent[("" if label == "step" else "  insert ") + sample.labels[label]] = sample.value
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--profile", action="store_true", help="print where the CPU time goes (and be slowed by it)")
    parser.add_argument("--kafka", action="store_true", help="read from Kafka, without publishing and with it")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="heliograph-load-") as folder:
        figures = _of_kafka(Path(folder), options) if options.kafka else _of_spool(Path(folder), options)
        for title, measured in figures.items():
            print(title)
            report(measured)


def _of_spool(folder: Path, options: argparse.Namespace) -> dict[str, Figures]:
    with running_clickhouse(folder / "ch") as settings:
        migrate(settings, RetentionSettings())
        where = asyncio.run(fill_spool(folder / "spool", options.events))
        return {"from the spool": _profiled(of_spool(settings, folder / "spool"), where, options)}


def _of_kafka(folder: Path, options: argparse.Namespace) -> dict[str, Figures]:
    """Each in a store of its own, so that the second finds nothing there yet."""
    figures = {}
    with running_kafka(folder / "kafka") as broker:
        asyncio.run(migrate_topics(broker.settings))
        where = asyncio.run(fill_kafka(broker.settings, options.events))
        for title, publishing in (("from Kafka, publishing nothing", False), ("from Kafka, publishing", True)):
            kafka = broker.settings.model_copy(update={"publish_enriched": publishing})
            with running_clickhouse(folder / f"ch-{publishing}") as settings:
                migrate(settings, RetentionSettings())
                figures[title] = _profiled(of_kafka(settings, kafka), where, options)
    return figures


def _profiled(services: Services, where: Partition, options: argparse.Namespace) -> Figures:
    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    figures = measure(services, where, events=options.events, batch=options.batch)
    profile.disable()
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    return figures


def report(figures: Figures) -> None:
    events = figures.events
    print(f"{events} events, {events / figures.cpu_s:,.0f} events/s per core of the worker process "
          f"({figures.cpu_s / events * 1e6:.0f} µs of CPU each); {events / figures.clock_s:,.0f} events/s by the clock "
          f"({figures.clock_s / events * 1e6:.0f} µs)")  # fmt: skip
    for name, seconds in figures.steps.items():
        print(f"  {name:24} {seconds / events * 1e6:6.1f} µs an event by the clock")


if __name__ == "__main__":
    main()
