"""The ledger as the planner reads it: a batch that stands in `batches` is stored, whole and once."""

import threading

from ingest.clickhouse import connect, store_errors
from schemas.batch import Batch, Confirmation, Partition
from schemas.settings import ClickHouseSettings

# The table's sorting key begins (topic, partition, first), so this reads the newest granule of one partition: about 1.5 ms.
# Two workers that confirm one batch at once leave one row, since both carry its token; LIMIT BY is for a ledger whose
# window of tokens had moved on between them.
_CONFIRMED = """
SELECT first, last, events, rows, dead_lettered FROM batches
WHERE topic = %(topic)s AND partition = %(partition)s AND first >= %(since)s
ORDER BY first, last LIMIT 1 BY first, last
"""


class Ledger:
    """Reads over one connection, opened at the first question. Safe to share between threads; one asks at a time."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        # A ledger that is slow to answer must not hold up planning for a whole query's time.
        answer_s = min(settings.query_timeout_s, 5.0)
        self._client = connect(settings.model_copy(update={"query_timeout_s": answer_s}), max_execution_time=answer_s)
        self._asking = threading.Lock()

    def confirmed(self, where: Partition, since: int) -> list[Confirmation]:
        """The batches of a partition in the ledger that begin at `since` or later, in order. about 1.5 ms.

        Raises:
            StoreUnavailable: nothing is known just now; ask again.
            StoreRefused: the ledger cannot be read as it is (no migration has run, no right to).
        """
        asked = {"topic": where.topic, "partition": where.number, "since": since}
        with self._asking, store_errors():
            found = self._client.execute(_CONFIRMED, asked)
        return [
            Confirmation(Batch(where.topic, where.number, first, last), events, rows, dead)
            for first, last, events, rows, dead in found
        ]

    def close(self) -> None:
        with self._asking:
            self._client.disconnect()
