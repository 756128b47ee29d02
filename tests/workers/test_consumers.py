"""The consumer of docs/consumers.md, as it stands there."""

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from ingest.kafka_client import connection
from ingest.kafka_publisher import KafkaPublisher
from ingest.kafka_thread import KafkaThread
from schemas.settings import KafkaSettings
from tests.servers import REPOSITORY
from tests.workers.case import Case
from workers.enrich import enrich
from workers.publish import Publisher


def program(kafka: KafkaSettings) -> str:
    """The page's code, its broker and topic replaced by the test's."""
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "consumers.md").read_text(), re.DOTALL)
    reached = {key: value for key, value in connection(kafka).items() if key != "client_id"}
    code, brokers = re.subn(r"^KAFKA = .*$", lambda _: f"KAFKA = {reached!r}", code, flags=re.MULTILINE)
    code, topics = re.subn(r"^TOPIC = .*$", lambda _: f"TOPIC = {kafka.enriched_topic!r}", code, flags=re.MULTILINE)
    assert (brokers, topics) == (1, 1)
    return str(code)


@contextmanager
def running(code: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines(process: "subprocess.Popen[str]", count: int, *, until: str = "", timeout_s: float = 30) -> list[str]:
    """At least `count` of them, and up to one that names `until`."""
    assert process.stdout is not None
    assert process.stderr is not None
    end, text = time.monotonic() + timeout_s, b""
    while text.count(b"\n") < count or until.encode() not in text.rpartition(b"\n")[0]:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
        part = os.read(process.stdout.fileno(), 65536) if ready else b""
        assert part, f"it ended or was silent after {text!r}: {process.stderr.read() if ready else ''}"
        text += part
    return text.decode().splitlines()


def test_the_consumer_of_the_page_reads_valid_requests_and_goes_on_where_it_was(
    case: Case, kafka: KafkaSettings
) -> None:
    thread = KafkaThread()
    publisher = Publisher(kafka, KafkaPublisher(kafka, thread))
    services = msgspec.structs.replace(case.services(), publisher=publisher)
    unanswered = case.event(response=None, status=None, outcome="cancelled", attempts=[])
    events = [*[case.event() for _ in range(20)], case.event(stream=True, first_token_ms=3.5), unanswered]
    later = case.event()
    try:
        enrich(case.batch(events), services)
        with running(program(kafka)) as consumer:
            seen = lines(consumer, len(events))
        enrich(case.batch([later]), services)
        with running(program(kafka)) as consumer:
            more = lines(consumer, 1, until=later.id)
    finally:
        publisher.close()
        thread.close()

    assert {line.split()[0] for line in seen} == {event.id for event in events}
    assert sorted(line.split(" ", 1)[1] for line in seen) == [
        *["gpt-4o unknown"],
        *["gpt-4o-2024-08-06 0.0004500000"] * 21,
    ]
    # The first was killed after it had printed its last line, and perhaps before it had committed it.
    assert {line.split()[0] for line in more} <= {seen[-1].split()[0], later.id}
