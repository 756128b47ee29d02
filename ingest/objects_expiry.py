"""Deletes moved bodies that are older than the retention of bodies. Each shipper does it now and then, some for all.

Names hold project and day, so what is too old is found by listing days, never every object; a day that is kept is not
looked into. Two shippers that do it at once do no harm.
"""

import logging
import random
import threading
from datetime import UTC, date, datetime, timedelta

from ingest import metrics
from ingest.objects import Objects, ObjectsUnavailable
from schemas.settings import ObjectSettings, RetentionSettings

log = logging.getLogger("heliograph.shipper")


def expire(objects: Objects, retention: RetentionSettings, *, now: datetime, at_once: int) -> int:
    """Delete what is too old. Blocks.

    Args:
        at_once: most objects deleted.

    Returns:
        How many were deleted; `at_once` of them: there may be more.

    Raises:
        ObjectsUnavailable: some may be deleted; the next turn goes on.
    """
    # A day's last body is kept as long as its first.
    first_kept = (now - timedelta(days=retention.bodies_days)).date()
    deleted = 0
    for project in objects.folders("bodies"):
        for folder in objects.folders(project):
            if deleted == at_once:
                return deleted
            day = _day(folder)
            if day is not None and day < first_kept:
                deleted += objects.delete_below(folder, at_once=at_once - deleted)
    # What no topic takes is a dead letter by then, and has no day in its name.
    died_before = now - timedelta(days=retention.dead_letter_days)
    return deleted + objects.delete_below("unshippable", at_once=at_once - deleted, made_before=died_before)


class Expiry:
    """Runs in a thread of its own while its `with` block does."""

    def __init__(self, objects: Objects, settings: ObjectSettings, retention: RetentionSettings) -> None:
        self._objects = objects
        self._settings = settings
        self._retention = retention
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="expiry", daemon=True)

    def turn(self) -> None:
        """Delete what is too old, within the bound of one turn. Trouble is told and left to the next."""
        try:
            deleted = expire(
                self._objects, self._retention, now=datetime.now(UTC), at_once=self._settings.expire_at_once
            )
        except ObjectsUnavailable as error:
            metrics.object_expiry_failures.inc()
            log.warning("old bodies could not be deleted; the next turn tries again", extra={"error": str(error)})
            return
        metrics.objects_expired.inc(deleted)
        if deleted:
            log.info("old bodies were deleted from the object store", extra={"objects": deleted})

    def _run(self) -> None:
        # Shippers that were started together must not all come at once.
        wait_s = random.uniform(0, self._settings.expire_every_s)  # noqa: S311
        while not self._ended.wait(wait_s):
            self.turn()
            wait_s = self._settings.expire_every_s

    def __enter__(self) -> "Expiry":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(self._settings.timeout_s)


def _day(folder: str) -> date | None:
    try:
        return date.fromisoformat(folder.rpartition("/")[2])
    except ValueError:
        return None
