"""Large bodies in the object store: a folder here, S3, Google Cloud Storage or Azure by the settings' URL.

The shipper moves a body there before its event goes to Kafka; the event keeps the name in `Body.reference` and an empty
`head`. Workers read it back for the usage, control for whoever asks to see it. Only `head` moves: `tail`, if there is
one, is short and stays.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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

from ingest.log import LogError, LogUnavailable, Record
from schemas.event import BadEvent, Body, Event, unpack
from schemas.settings import ObjectSettings, SettingsError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_MARK = b"\xa9reference"
"""The field's name as msgpack writes it: an event without these bytes refers to nothing."""
_BODIES = "bodies"
_RETRIES = 3
_LISTED = 1000
_MISSING = (FileNotFoundError, NotFoundError, ValueError)
"""Not there; a name that no object can have (ValueError) is not there either."""


class ObjectsUnavailable(LogUnavailable):
    """The object store did not take or give an object; try again."""


class ObjectTooLarge(LogError):
    """It has more bytes than may be taken; nothing of it was read."""


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
            except _MISSING:
                return None
            except (BaseError, OSError) as error:
                if time.monotonic() >= deadline:
                    raise ObjectsUnavailable(f"the object store: {_told(error)}") from error
                time.sleep(0.1)

    async def read(self, name: str, *, bytes_max: int) -> bytes | None:
        """As `get`, without blocking and within a bound.

        Raises:
            ObjectTooLarge, ObjectsUnavailable.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await obstore.get_async(self._store, name)
                if found.meta["size"] > bytes_max:
                    raise ObjectTooLarge(f"{found.meta['size']} bytes, {bytes_max} may be taken")
                return (await found.bytes_async()).to_bytes()
        except _MISSING:
            return None
        except TimeoutError as error:
            raise ObjectsUnavailable(f"the object store did not answer within {self._timeout_s:g} s") from error
        except (BaseError, OSError) as error:
            raise ObjectsUnavailable(f"the object store: {_told(error)}") from error

    def folders(self, name: str) -> list[str]:
        """The folders in a folder, by their whole names. Blocks.

        Raises:
            ObjectsUnavailable.
        """
        with _unavailable_as_ours():
            return sorted(obstore.list_with_delimiter(self._store, name)["common_prefixes"])

    def delete_below(self, name: str, *, at_once: int, made_before: datetime | None = None) -> int:
        """Delete objects below a folder, at most so many, and say how many. One that is gone meanwhile is deleted. Blocks.

        Raises:
            ObjectsUnavailable: some may be deleted.
        """
        deleted = 0
        with _unavailable_as_ours():
            for found in obstore.list(self._store, name, chunk_size=_LISTED):
                old = [one["path"] for one in found if made_before is None or one["last_modified"] < made_before]
                del old[at_once - deleted :]
                try:
                    obstore.delete(self._store, old)
                except _MISSING:  # another deletes here too: one by one, whoever is first
                    for path in old:
                        with suppress(*_MISSING):
                            obstore.delete(self._store, path)
                deleted += len(old)
                if deleted >= at_once:
                    break
        return deleted

    def parts(self, records: Sequence[Record]) -> Iterator[Sequence[Record]]:
        """The records in their order, cut so that the large bodies of a part are no more than may be held at a time."""
        start = held_bytes = 0
        for place, record in enumerate(records):
            wanted_bytes = sum(max(0, body.size - len(body.tail)) for body in _moved(record))
            if held_bytes and held_bytes + wanted_bytes > self._settings.read_bytes:
                yield records[start:place]
                start, held_bytes = place, 0
            held_bytes += wanted_bytes
        if start < len(records):
            yield records[start:]

    def bodies_of(self, records: Sequence[Record]) -> dict[str, bytes]:
        """Every large body that these records refer to, by its name. One that is gone is left out. Blocks.

        Raises:
            ObjectsUnavailable.
        """
        names = list(dict.fromkeys(body.reference for record in records for body in _moved(record) if body.reference))
        if not names:
            return {}
        pool = ThreadPoolExecutor(min(len(names), self._settings.read_at_once), thread_name_prefix="objects")
        try:
            found = zip(names, pool.map(self.get, names), strict=True)
            return {name: data for name, data in found if data is not None}
        finally:
            # Whoever is told to end, or has seen one fail, must not wait for the others.
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _unavailable_as_ours() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise ObjectsUnavailable(f"the object store: {_told(error)}") from error


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


def belongs_to(name: str, project_id: str) -> bool:
    """Whether a body of this name is this project's."""
    return name.startswith(f"{_BODIES}/{quote(project_id, safe='')}/")


def _name(event: Event, side: str, data: bytes) -> str:
    # By project and day, so that erasing a project or a day's end of retention is one prefix.
    day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=event.created_ms)).date()
    digest = blake2b(data, digest_size=8).hexdigest()
    return f"{_BODIES}/{quote(event.project_id, safe='')}/{day}/{quote(event.id, safe='')}/{side}-{digest}"


def _moved(record: Record) -> list[Body]:
    """Those bodies of a record that are objects."""
    if record.corrupt or _MARK not in record.payload:
        return []
    try:
        event = unpack(record.payload)
    except BadEvent:
        return []
    return [body for body in (event.request, event.response) if body is not None and body.reference]


def _open(settings: ObjectSettings, data_dir: Path) -> "ObjectStore":
    try:
        if settings.url is None:
            folder = data_dir.absolute() / "objects"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return LocalStore(folder, automatic_cleanup=True)
        if settings.url.startswith("file://"):
            return LocalStore(unquote(urlsplit(settings.url).path), mkdir=True, automatic_cleanup=True)
        timeout = timedelta(seconds=settings.timeout_s)
        options: Any = dict(settings.options)  # the store knows their names, and refuses others
        # The client's, not the store's; among those obstore 0.12 ends in a panic.
        allow_http = str(options.pop("allow_http", "false")).lower() in ("true", "1")
        return from_url(
            settings.url,
            config=options,
            client_options={"timeout": timeout, "connect_timeout": timeout, "allow_http": allow_http},
            retry_config={"max_retries": _RETRIES, "retry_timeout": timeout},
        )
    except (BaseError, OSError, ValueError) as error:
        raise SettingsError(f"HELIOGRAPH_OBJECTS__URL = {settings.url!r}: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """The first line; what follows is the library's own structures."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
