"""Large bodies in the object store: a folder here, S3, Google Cloud Storage or Azure by the settings' URL.

The shipper moves a body there before its event goes to Kafka; the event keeps the name in `Body.reference` and an empty
`head`. Workers read it back for the usage, control for whoever asks to see it. Only `head` moves: `tail`, if there is
one, is short and stays.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import msgspec
import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, from_url

from ingest.log import LogUnavailable, Record
from schemas.event import BadEvent, Body, Event, unpack
from schemas.settings import ObjectSettings, SettingsError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_MARK = b"\xa9reference"
"""The field's name as msgpack writes it: an event without these bytes refers to nothing."""
_RETRIES = 3


class ObjectsUnavailable(LogUnavailable):
    """The object store did not take or give an object; try again."""


class Objects:
    """An opened store. Safe to share between threads; open it after a fork, not before."""

    def __init__(self, settings: ObjectSettings, data_dir: Path) -> None:
        self._timeout_s = settings.timeout_s
        self._settings = settings
        self._data_dir = data_dir

    def open(self) -> None:
        """Open the store now rather than at its first use.

        Raises:
            SettingsError: no store is to be had by these settings.
        """
        assert self._store is not None

    @cached_property
    def _store(self) -> "ObjectStore":
        return _open(self._settings, self._data_dir)

    async def put(self, name: str, data: bytes) -> None:
        """Durable as the store makes it when this returns. The same name again is the same bytes again.

        Raises:
            ObjectsUnavailable: it may be there or not.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await obstore.put_async(self._store, name, data)
        except TimeoutError as error:
            raise ObjectsUnavailable(f"the object store did not answer within {self._timeout_s:g} s") from error
        except (BaseError, OSError) as error:
            raise ObjectsUnavailable(f"the object store: {_told(error)}") from error

    def get(self, name: str) -> bytes | None:
        """An object's bytes; None: it is not there (any more). Blocks.

        Raises:
            ObjectsUnavailable.
        """
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                return obstore.get(self._store, name).bytes().to_bytes()
            except (FileNotFoundError, NotFoundError):
                return None
            except (BaseError, OSError) as error:
                if time.monotonic() >= deadline:
                    raise ObjectsUnavailable(f"the object store: {_told(error)}") from error
                time.sleep(0.1)

    def bodies_of(self, records: Sequence[Record]) -> dict[str, bytes]:
        """Every large body that these records refer to, by its name. One that is gone is left out. Blocks.

        Raises:
            ObjectsUnavailable.
        """
        found: dict[str, bytes] = {}
        for record in records:
            for name in _references(record):
                data = self.get(name)
                if data is not None:
                    found[name] = data
        return found


def large_bodies(event: Event, *, more_than: int) -> dict[str, bytes]:
    """The bodies of an event that keep more than so many bytes, by the names they get. Pure.

    A name holds the event's id and a digest of the bytes: moved again after a crash a body has the same name, and two
    events whose clients gave them one id do not share any.
    """
    found = {}
    for side, body in (("request", event.request), ("response", event.response)):
        if body is not None and body.reference is None and len(body.head) > more_than:
            found[_name(event, side, body.head)] = body.head
    return found


def without_bodies(event: Event, names: Sequence[str]) -> Event:
    """The event as it goes on once `large_bodies` have been stored. Pure."""
    by_side = {name.rpartition("/")[2].partition("-")[0]: name for name in names}
    changed: dict[str, Body] = {}
    for side, body in (("request", event.request), ("response", event.response)):
        if side in by_side and body is not None:
            changed[side] = msgspec.structs.replace(body, head=b"", reference=by_side[side])
    return msgspec.structs.replace(event, **changed)


def with_bodies(event: Event, bodies: Mapping[str, bytes]) -> Event:
    """The event as the edge packed it, as far as its bodies are at hand. Pure."""
    changed: dict[str, Body] = {}
    for side, body in (("request", event.request), ("response", event.response)):
        if body is not None and body.reference is not None and body.reference in bodies:
            changed[side] = msgspec.structs.replace(body, head=bodies[body.reference])
    return msgspec.structs.replace(event, **changed) if changed else event


def _name(event: Event, side: str, data: bytes) -> str:
    # By project and day, so that erasing a project or a day's end of retention is one prefix.
    day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=event.created_ms)).date()
    digest = blake2b(data, digest_size=8).hexdigest()
    return f"bodies/{quote(event.project_id, safe='')}/{day}/{quote(event.id, safe='')}/{side}-{digest}"


def _references(record: Record) -> list[str]:
    if record.corrupt or _MARK not in record.payload:
        return []
    try:
        event = unpack(record.payload)
    except BadEvent:
        return []
    return [body.reference for body in (event.request, event.response) if body is not None and body.reference]


def _open(settings: ObjectSettings, data_dir: Path) -> "ObjectStore":
    try:
        if settings.url is None:
            folder = data_dir.absolute() / "objects"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return LocalStore(folder)
        if settings.url.startswith("file://"):
            return LocalStore(unquote(urlsplit(settings.url).path), mkdir=True)
        timeout = timedelta(seconds=settings.timeout_s)
        options: Any = settings.options  # the store knows their names, and refuses others
        return from_url(
            settings.url,
            config=options,
            client_options={"timeout": timeout, "connect_timeout": timeout},
            retry_config={"max_retries": _RETRIES, "retry_timeout": timeout},
        )
    except (BaseError, OSError, ValueError) as error:
        raise SettingsError(f"HELIOGRAPH_OBJECTS__URL = {settings.url!r}: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """The first line; what follows is the library's own structures."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
