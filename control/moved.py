"""Large bodies that were moved to the object store, read back for whoever asks to see one request.

A body that cannot be shown never keeps the rest of the request from being shown: it says why instead.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from enum import Enum

from control import metrics
from ingest.objects import Objects, ObjectsUnavailable, ObjectTooLarge, belongs_to
from schemas.settings import ControlBounds, SettingsError

log = logging.getLogger("heliograph.control")


class NotShown(Enum):
    """Why a moved body is not there to be shown."""

    GONE = "gone"
    TOO_LARGE = "too_large"
    UNAVAILABLE = "unavailable"


Moved = Mapping[str, str | bytes | NotShown]
"""By reference: text where the bytes are UTF-8, as ClickHouse's driver gives bodies that were not moved."""


class MovedBodies:
    """Bounded in bytes each, in number at a time, and in time with the wait for one's turn."""

    def __init__(self, objects: Objects, bounds: ControlBounds) -> None:
        self._objects = objects
        self._bounds = bounds
        self._at_once = asyncio.Semaphore(bounds.objects_at_once)

    async def fetch(self, project_id: str, references: Iterable[str]) -> Moved:
        """What these references of one project's rows stand for."""
        wanted = sorted({reference for reference in references if reference})
        found = await asyncio.gather(*(self._fetch(project_id, reference) for reference in wanted))
        return dict(zip(wanted, found, strict=True))

    async def _fetch(self, project_id: str, reference: str) -> str | bytes | NotShown:
        if not belongs_to(reference, project_id):
            # An event is only as honest as whoever may write to Kafka.
            log.error("a row refers to what is not its project's", extra={"project": project_id})
            return NotShown.GONE
        bounds = self._bounds
        try:
            async with asyncio.timeout(bounds.object_timeout_s), self._at_once:
                data = await self._objects.read(reference, bytes_max=bounds.object_bytes)
        except ObjectTooLarge:
            return NotShown.TOO_LARGE
        except (ObjectsUnavailable, SettingsError, TimeoutError) as error:
            metrics.object_failures.inc()
            log.warning("a body cannot be read from the object store", extra={"error": f"{error}" or "out of time"})
            return NotShown.UNAVAILABLE
        if data is None:
            return NotShown.GONE
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data
