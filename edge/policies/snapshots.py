"""The keys as this process holds them: kept when Redis is away, on disk for a start without it.

Refreshed when control announces a change, and compared every few seconds in case an announcement was missed.
"""

import asyncio
import logging
import os
from pathlib import Path

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from schemas.keys import SNAPSHOT_CHANNEL, SNAPSHOT_KEY, Key, KeySnapshot

log = logging.getLogger("heliograph.snapshots")

_RETRY_S = 0.5
_SOCKET_TIMEOUT_S = 2.0
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)


class KeySnapshots:
    """`keys` is None until a first snapshot was seen, ever, by this data folder."""

    def __init__(self, redis_url: str, file: Path, *, poll_s: float) -> None:
        self.keys: dict[str, Key] | None = None
        self.version = -1
        self._file = file
        self._poll_s = poll_s
        self._unread: str | None = None
        """What was wrong with the last snapshot that could not be read."""
        self._redis: Redis = Redis.from_url(
            redis_url, socket_timeout=_SOCKET_TIMEOUT_S, socket_connect_timeout=_SOCKET_TIMEOUT_S
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the last snapshot known to this machine, then follow Redis in the background."""
        try:
            self._take(self._file.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, *_UNREADABLE) as error:
            log.warning("the kept key snapshot cannot be read", extra={"error": str(error)})
        try:
            await self._refresh()
        except (RedisError, OSError):
            log.warning("Redis is not reachable; keys stay as last known", extra={"version": self.version})
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._redis.aclose()

    async def _follow(self) -> None:
        reachable = True
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(SNAPSHOT_CHANNEL)
                    while True:
                        # Asked right after subscribing, and after each wait: what was announced meanwhile is not missed.
                        await self._refresh()
                        if not reachable:
                            log.info("Redis is back; keys are followed again", extra={"version": self.version})
                            reachable = True
                        await channel.get_message(timeout=self._poll_s)
            except (RedisError, OSError) as error:
                if reachable:
                    log.warning("keys stay as last known: Redis is away", extra={"error": type(error).__name__})
                    reachable = False
                await asyncio.sleep(_RETRY_S)

    async def _refresh(self) -> None:
        data: bytes | None = await self._redis.get(SNAPSHOT_KEY)  # type: ignore[assignment]  # bytes by default
        try:
            taken = data is not None and self._take(data)
        except _UNREADABLE as error:
            if str(error) != self._unread:
                log.error("a key snapshot cannot be read; keys stay as last known", extra={"error": str(error)})
            self._unread = str(error)
            return
        self._unread = None
        if data is not None and taken:
            await asyncio.to_thread(self._keep, data)

    def _take(self, data: bytes) -> bool:
        snapshot = msgspec.json.decode(data, type=KeySnapshot)
        if snapshot.version <= self.version:
            return False
        self.keys, self.version = snapshot.keys, snapshot.version
        return True

    def _keep(self, data: bytes) -> None:
        fresh = self._file.with_suffix(f".{os.getpid()}.new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(fresh, self._file)
        except OSError as error:
            log.warning("the key snapshot cannot be kept on disk", extra={"error": str(error)})
