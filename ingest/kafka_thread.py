"""An event loop in a thread, for blocking code that speaks to Kafka: aiokafka knows only asyncio."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import TypeVar

from ingest.log import LogUnavailable

T = TypeVar("T")

CLOSE_S = 2.0


class KafkaThread:
    """Open it after a fork. What shares one thread shares its loop; the last to go closes it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda *_: None)  # what matters is raised to whoever waits
        self._thread = threading.Thread(target=self._loop.run_forever, name="kafka", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def run(self, coroutine: Coroutine[None, None, T], timeout_s: float) -> T:
        """Its outcome, waited for. It should end in time by itself; `timeout_s` is for a loop that is stuck.

        Raises:
            LogUnavailable: time was over.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            raise LogUnavailable("Kafka: the client does not answer") from None
        finally:
            future.cancel()

    def close(self) -> None:
        """End what the clients have left running, then the loop."""
        if self._loop.is_closed():
            return
        self.run(_end_tasks(), 2 * CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()


async def _end_tasks() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*left, return_exceptions=True), CLOSE_S)
