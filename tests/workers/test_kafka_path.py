"""The whole of the Kafka path in small: spool, shipper, Kafka, planner, enrich, rows. The same planner and the same
enrich as on the spool."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.objects import Objects
from schemas.event import Body
from schemas.settings import KafkaSettings, ObjectSettings
from tests.workers.behind import Behind
from tests.workers.case import Case, once


@pytest.fixture
def path(case: Case, kafka: KafkaSettings, tmp_path: Path) -> Iterator[Behind]:
    one = Behind(case, kafka, tmp_path)
    yield one
    one.close()


async def test_every_event_of_the_spool_is_a_row_once(path: Behind) -> None:
    await path.run([path.case.event() for _ in range(1000)], twice=True)
    assert path.case.counts() == once(1000, ledger=len(set(path.handed)))


async def test_a_large_body_is_read_for_its_usage_and_stays_where_it_is(path: Behind) -> None:
    padding = b" " * 300_000
    response = (
        b'{"id":"x","object":"chat.completion","model":"gpt-4o-2024-08-06","choices":[],'
        + padding
        + b'"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120}}'
    )
    event = path.case.event(response=Body(size=len(response), head=response))
    await path.run([event])
    row = path.case.row()
    assert (row["input_tokens"], row["output_tokens"], row["response_bytes"]) == (100, 20, len(response))
    ((stored, reference),) = path.case.query(
        "SELECT response, response_reference FROM bodies WHERE project_id = %(project)s"
    )
    assert not stored
    assert Objects(ObjectSettings(), path.root).get(str(reference)) == response


async def test_poison_in_a_batch_dies_alone(path: Behind) -> None:
    good = [path.case.event() for _ in range(20)]
    await path.run([*good[:10], path.case.event(id="no uuid"), *good[10:]])
    counts = path.case.counts()
    assert (counts["requests"], counts["dead_letters"]) == (20, 1)
