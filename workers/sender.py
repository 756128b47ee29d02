"""The planner's end of the queue: a batch's reference, sent at once or not at all."""

import threading
from contextlib import suppress
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from schemas.batch import ENRICH_TASK, Batch
from schemas.settings import SharedSettings
from workers.app import QUEUE, broker_url

_CONNECT_S = 2.0
_ANSWER_S = 2.0
QUEUED_MAX = 10_000
"""References waiting in Redis, about half a kilobyte each. Planners hand out again what is overdue, so with no worker
running the queue would grow for ever; a batch refused here is handed out again later, as any other."""


class BrokerUnavailable(ConnectionError):
    """Redis was not reached in time, or holds enough already: the batch may or may not have been handed out."""


class Sender:
    """`send` is an `ingest.planner.HandOut` over Celery. Connects at the first batch, and again after each loss.

    One connection of its own, not Celery's pool: that one waits and retries for longer than a planner has time.
    """

    def __init__(self, shared: SharedSettings) -> None:
        self._app = Celery("heliograph-planner", broker=broker_url(shared), set_as_current=False)
        self._app.conf.update(
            task_serializer="json",
            task_ignore_result=True,
            task_send_sent_event=False,
            broker_connection_timeout=_CONNECT_S,
            broker_transport_options={
                "socket_connect_timeout": _CONNECT_S,
                "socket_timeout": _ANSWER_S,
                "max_retries": 0,
                "connect_retries_timeout": _CONNECT_S,
            },
        )
        self._sending = threading.Lock()
        self._connection: Any = None
        self._producer: Any = None

    def send(self, batch: Batch) -> None:
        """Hand a batch to the workers. Ends within about 5 s, whatever Redis does.

        Raises:
            BrokerUnavailable: try again later; sending twice is harmless.
        """
        payload = {"topic": batch.topic, "partition": batch.partition, "first": batch.first, "last": batch.last}
        with self._sending:
            try:
                producer = self._connected()
                waiting = producer.channel.client.llen(QUEUE)
                if waiting < QUEUED_MAX:
                    self._app.send_task(
                        ENRICH_TASK, kwargs=payload, queue=QUEUE, producer=producer, retry=False, ignore_result=True
                    )
                    return
            except (RedisError, OperationalError, KombuError, OSError) as error:
                self._disconnect()
                raise BrokerUnavailable(f"Redis is not reachable: {type(error).__name__}: {error}") from error
        raise BrokerUnavailable(f"{waiting} batches are queued already; are workers running?")

    def close(self) -> None:
        with self._sending:
            self._disconnect()
            self._app.close()

    def _connected(self) -> Any:
        if self._producer is None:
            self._connection = self._app.connection_for_write()
            self._producer = self._app.amqp.Producer(self._connection)
        return self._producer

    def _disconnect(self) -> None:
        """Whatever state the connection is in, the next batch begins with a new one."""
        if self._connection is not None:
            with suppress(RedisError, KombuError, OSError):
                self._connection.release()
        self._connection = self._producer = None
