"""Keys and projects: made, listed, revoked, and made known to every edge through Redis.

The database is the truth. After each change, at control's start, and whenever Redis lost it, the whole set goes to Redis
as one snapshot (`schemas/keys.py`). The command line does the same without the control server: `open_keys`.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast, get_args

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import Row, case, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from control import metrics
from control.database import Database, Project, SnapshotState, StoredKey
from control.errors import BadRequest, Conflict, ControlError, Forbidden, NotFound, shown
from schemas.ids import new_id
from schemas.keys import (
    DEFAULT_PROJECT,
    SNAPSHOT_CHANNEL,
    SNAPSHOT_KEY,
    Key,
    KeySnapshot,
    Permission,
    hash_key,
    make_key,
)
from schemas.settings import ControlBounds, SharedSettings

log = logging.getLogger("heliograph.control")

PERMISSIONS: Final[tuple[Permission, ...]] = get_args(Permission)
DEFAULT_PERMISSIONS: Final[tuple[Permission, ...]] = ("proxy", "read")
NAME_MAX = 100
_PROJECT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_EXPIRY = re.compile(r"([0-9]{1,9})([smhdw])")
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_EXPIRY_MAX_MS = 100 * 366 * 86_400_000

# Two may publish at once (a command line and a server): the older of their snapshots must not win.
_SET_IF_NEWER = """
local stored = string.match(redis.call('GETRANGE', KEYS[1], 0, 63), '"version":(%d+)')
if stored and tonumber(stored) > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return 1
"""


class KeyInfo(msgspec.Struct, frozen=True):
    """What is known of a key, which is not the key."""

    id: str
    name: str
    project_id: str
    permissions: list[Permission]
    last4: str
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None

    def state(self, now_ms: int) -> str:
        if self.revoked_ms is not None:
            return "revoked"
        return "expired" if self.expires_ms is not None and self.expires_ms <= now_ms else "active"


class NewKey(msgspec.Struct, frozen=True):
    """A key just made. Its text is nowhere else and never shown again."""

    info: KeyInfo
    text: str
    published: bool
    """False: Redis was not reached, so edges learn of it when it is back."""


class RevokedKey(msgspec.Struct, frozen=True):
    info: KeyInfo
    published: bool
    """False: Redis was not reached; until it is back, edges still let the key pass."""


class ProjectInfo(msgspec.Struct, frozen=True):
    id: str
    created_ms: int


class Keys:
    """The functions below, with the database and Redis they need. Changes are published before they return."""

    def __init__(self, database: Database, redis: "Redis | None", *, redis_timeout_s: float) -> None:
        self.database = database
        self._redis = redis
        self._redis_timeout_s = redis_timeout_s

    async def create(
        self,
        *,
        name: str,
        project: str = DEFAULT_PROJECT,
        permissions: Iterable[str] = DEFAULT_PERMISSIONS,
        expires_in_ms: int | None = None,
    ) -> NewKey:
        """Make a key.

        Args:
            expires_in_ms: from now; None: never (`parse_expiry`).

        Raises:
            BadRequest: a name, permission or expiry that may not be.
            NotFound: there is no such project.
            DatabaseDown: nothing was made.
        """
        name = read_name(name)
        allowed = read_permissions(permissions)
        now_us = time.time_ns() // 1000
        key = make_key()
        row = {
            "id": new_id(now_us // 1000),
            "project_id": project,
            "name": name,
            "hash": hash_key(key),
            "last4": key[-4:],
            "permissions": ",".join(allowed),
            "created_ms": now_us // 1000,
            "expires_ms": None if expires_in_ms is None else now_us // 1000 + expires_in_ms,
            "revoked_ms": None,
        }
        async with self.database.writing() as connection:
            await _require_project(connection, project)
            await connection.execute(insert(StoredKey).values(row))
            await _grow_version(connection, now_us)
        info = KeyInfo(**{**{k: v for k, v in row.items() if k != "hash"}, "permissions": allowed})  # type: ignore[arg-type]
        return NewKey(info=info, text=key, published=await self._publish_change())

    async def list_keys(self, project: str | None = None) -> list[KeyInfo]:
        """Every key, revoked ones too, oldest first; of one project, where it is named."""
        query = select(StoredKey.__table__).order_by(StoredKey.created_ms, StoredKey.id)
        if project is not None:
            query = query.where(StoredKey.project_id == project)
        async with self.database.reading() as connection:
            if project is not None:
                await _require_project(connection, project)
            return [_info(row) for row in await connection.execute(query)]

    async def revoke(self, id_or_name: str, project: str | None = None, *, asking: str | None = None) -> RevokedKey:
        """Revoke a key, at once and for good. Revoking it again changes nothing.

        Args:
            project: whose keys are looked at; None: all projects' (the operator's command line).
            asking: id of the key that asks for it; None: none does.

        Raises:
            Forbidden: it is the key that asks.
            NotFound: no key has this id or name.
            Conflict: several keys that are not revoked have this name; the message gives their ids.
        """
        now_us = time.time_ns() // 1000
        async with self.database.writing() as connection:
            info = await _find(connection, id_or_name, project)
            if info.id == asking:
                raise Forbidden("a key does not revoke itself; `heliograph keys revoke` does")
            if info.revoked_ms is None:
                await connection.execute(
                    update(StoredKey).where(StoredKey.id == info.id).values(revoked_ms=now_us // 1000)
                )
                await _grow_version(connection, now_us)
                info = msgspec.structs.replace(info, revoked_ms=now_us // 1000)
        return RevokedKey(info=info, published=await self._publish_change())

    async def create_project(self, name: str) -> ProjectInfo:
        """Make a project. Its name is its id and never changes.

        Raises:
            BadRequest: not a name a project may have.
            Conflict: there is one already.
        """
        if not _PROJECT.fullmatch(name):
            raise BadRequest("name", name, "1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit")
        now_ms = time.time_ns() // 1_000_000
        async with self.database.writing() as connection:
            try:
                await connection.execute(insert(Project).values(id=name, created_ms=now_ms))
            except IntegrityError:
                raise Conflict(f"there is a project {name!r} already") from None
        return ProjectInfo(id=name, created_ms=now_ms)

    async def list_projects(self) -> list[ProjectInfo]:
        """Every project, by name."""
        async with self.database.reading() as connection:
            rows = await connection.execute(select(Project.id, Project.created_ms))
            projects = [ProjectInfo(id=row.id, created_ms=row.created_ms) for row in rows]
        # Here and not there: a database orders text by its own language.
        return sorted(projects, key=lambda project: project.id)

    async def find(self, text: str) -> KeyInfo | None:
        """The key with this text; None: there is none. Revoked and expired ones are found too."""
        query = select(StoredKey.__table__).where(StoredKey.hash == hash_key(text))
        async with self.database.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else _info(row)

    async def snapshot(self) -> KeySnapshot:
        async with self.database.reading() as connection:
            # Version first: a change between the two reads makes the snapshot newer than it says, never older.
            version = await _version(connection)
            rows = (await connection.execute(select(StoredKey.__table__))).all()
        keys = {}
        for row in rows:
            info = _info(row)
            keys[row.hash] = Key(
                id=info.id,
                name=info.name,
                project_id=info.project_id,
                permissions=[*info.permissions],
                expires_ms=info.expires_ms,
                revoked=info.revoked_ms is not None,
            )
        return KeySnapshot(version=version, keys=keys)

    async def _publish_change(self) -> bool:
        """`publish`, after a change that has been made: whoever asked for it must hear so, whatever happens now."""
        try:
            return await self.publish()
        except ControlError as error:
            log.warning("keys are not published yet: %s", error)
            return False

    async def publish(self) -> bool:
        """Write the snapshot to Redis and announce it. False: Redis was not reached, `reconcile` will.

        Raises:
            DatabaseDown: the snapshot cannot be made.
        """
        if self._redis is None:
            return False
        snapshot = await self.snapshot()
        try:
            async with asyncio.timeout(self._redis_timeout_s):
                written = await self._redis.eval(
                    _SET_IF_NEWER,
                    1,
                    SNAPSHOT_KEY,
                    str(snapshot.version),
                    msgspec.json.encode(snapshot),
                    SNAPSHOT_CHANNEL,
                )
        except (RedisError, OSError, TimeoutError) as error:
            metrics.snapshot_failures.labels("redis").inc()
            log.warning("keys are not published yet, Redis was not reached: %s", type(error).__name__)
            return False
        if written:
            metrics.snapshots_published.inc()
        return True

    async def reconcile(self) -> bool:
        """Publish where Redis holds anything but the newest snapshot. True: it had to be published.

        Raises:
            DatabaseDown, RedisError, OSError, TimeoutError: the next turn tries again.
        """
        if self._redis is None:
            return False
        async with asyncio.timeout(self._redis_timeout_s):
            head = await cast(Awaitable[Any], self._redis.getrange(SNAPSHOT_KEY, 0, 63))
        found = re.search(rb'"version":(\d+)', head if isinstance(head, bytes) else str(head).encode())
        stored = int(found[1]) if found else -1
        async with self.database.reading() as connection:
            version = await _version(connection)
        if stored == version:
            return False
        if stored > version:
            # The database is older than what edges hold: restored from a backup, or begun afresh. It is the truth
            # all the same, so its version is lifted above theirs.
            log.warning("Redis holds keys newer than the database's; the database's are published over them")
            async with self.database.writing() as connection:
                await _grow_version(connection, stored + 1)
        return await self.publish()

    async def keep_published(self, *, every_s: float, stop: asyncio.Event) -> None:
        """Publish at once, then compare every few seconds, until told to stop.

        Told, not cancelled: a cancellation that arrives inside a database call may be lost there, and the loop goes on.
        """
        with suppress(ControlError):
            await self.publish()
        while not await stopped_within(stop, every_s):
            try:
                await self.reconcile()
            except (ControlError, RedisError, OSError, TimeoutError) as error:
                part = "database" if isinstance(error, ControlError) else "redis"
                metrics.snapshot_failures.labels(part).inc()
                log.debug("keys were not compared: %s", error)


async def stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    """Wait, but no longer than it takes to be told to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


@asynccontextmanager
async def open_keys(settings: SharedSettings, bounds: ControlBounds | None = None) -> AsyncIterator[Keys]:
    """Keys for a command line or a server: the database is brought up to date first.

    Args:
        settings: `redis.url` left out means that nothing is published; whoever starts the embedded Valkey fills it in.
    """
    bounds = bounds or ControlBounds()
    database = Database(settings, timeout_s=bounds.database_timeout_s)
    redis = connect_redis(settings, timeout_s=bounds.redis_timeout_s)
    try:
        await database.migrate()
        yield Keys(database, redis, redis_timeout_s=bounds.redis_timeout_s)
    finally:
        if redis is not None:
            await redis.aclose()
        await database.close()


def connect_redis(settings: SharedSettings, *, timeout_s: float) -> "Redis | None":
    if settings.redis.url is None:
        return None
    return Redis.from_url(
        settings.redis.url.get_secret_value(), socket_timeout=timeout_s, socket_connect_timeout=timeout_s
    )


def parse_expiry(text: str) -> int:
    """`30d`, `12h`, `3600s` (also m, w) as milliseconds.

    Raises:
        BadRequest: anything else, nothing at all, or more than a hundred years.
    """
    found = _EXPIRY.fullmatch(text.strip())
    if found is None:
        raise BadRequest("expires", text, "must be a whole number and a unit: 30d, 12h, 90m, 3600s or 2w")
    milliseconds = int(found[1]) * _UNIT_MS[found[2]]
    if not 0 < milliseconds <= _EXPIRY_MAX_MS:
        raise BadRequest("expires", text, "must be more than nothing and at most a hundred years")
    return milliseconds


def read_permissions(given: Iterable[str]) -> list[Permission]:
    """In their fixed order, each once.

    Raises:
        BadRequest: an unknown one, or none.
    """
    wanted = [permission.strip() for permission in given]
    for permission in wanted:
        if permission not in PERMISSIONS:
            raise BadRequest("permissions", permission, f"must be among {', '.join(PERMISSIONS)}")
    if not wanted:
        raise BadRequest("permissions", "", f"at least one of {', '.join(PERMISSIONS)}")
    return [permission for permission in PERMISSIONS if permission in wanted]


def read_name(name: str) -> str:
    """A name people can tell keys by.

    Raises:
        BadRequest: empty, too long, or with characters that do not print.
    """
    name = name.strip()
    if not _could_be_a_name(name):
        raise BadRequest("name", name, f"1 to {NAME_MAX} printable characters")
    return name


def _could_be_a_name(text: str) -> bool:
    """Nothing else may reach the database: not each takes every text (PostgreSQL no zero byte, none half a surrogate)."""
    return 0 < len(text) <= NAME_MAX and text.isprintable()


async def _find(connection: AsyncConnection, id_or_name: str, project: str | None) -> KeyInfo:
    if not _could_be_a_name(id_or_name):
        raise NotFound(f"no key has the id or name {shown(id_or_name)!r}")
    # Locked until the end of the transaction: where two revoke one key, the second sees what the first has done.
    query = select(StoredKey.__table__).order_by(StoredKey.created_ms, StoredKey.id).with_for_update()
    if project is not None:
        query = query.where(StoredKey.project_id == project)
    by_id = (await connection.execute(query.where(StoredKey.id == id_or_name))).first()
    if by_id is not None:
        return _info(by_id)
    named = [_info(row) for row in await connection.execute(query.where(StoredKey.name == id_or_name))]
    live = [info for info in named if info.revoked_ms is None]
    if len(live) > 1:
        choices = ", ".join(f"{info.id} (…{info.last4}, project {info.project_id})" for info in live[:10])
        raise Conflict(f"{len(live)} keys have the name {shown(id_or_name)!r}; say which by id: {choices}")
    if not named:
        raise NotFound(f"no key has the id or name {shown(id_or_name)!r}")
    return live[0] if live else named[-1]


async def _require_project(connection: AsyncConnection, project: str) -> None:
    found = (
        _PROJECT.fullmatch(project)
        and (await connection.execute(select(Project.id).where(Project.id == project))).first()
    )
    if not found:
        raise NotFound(f"there is no project {shown(project)!r}; `heliograph projects create` makes one")


async def _version(connection: AsyncConnection) -> int:
    row = (await connection.execute(select(SnapshotState.version).where(SnapshotState.id == 1))).one()
    return int(row.version)


async def _grow_version(connection: AsyncConnection, wanted: int) -> None:
    # The clock may have been set back; the version only grows. In one statement, so that two writers queue up here.
    grown = case((SnapshotState.version >= wanted, SnapshotState.version + 1), else_=wanted)
    await connection.execute(update(SnapshotState).where(SnapshotState.id == 1).values(version=grown))


def _info(row: Row[Any]) -> KeyInfo:
    permissions: Sequence[Permission] = row.permissions.split(",")
    return KeyInfo(
        id=row.id,
        name=row.name,
        project_id=row.project_id,
        permissions=list(permissions),
        last4=row.last4,
        created_ms=row.created_ms,
        expires_ms=row.expires_ms,
        revoked_ms=row.revoked_ms,
    )
