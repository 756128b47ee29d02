"""Heliograph keys as every edge holds them in memory: a snapshot that control publishes through Redis."""

import hashlib
import secrets
from typing import Literal

import msgspec

Permission = Literal["proxy", "read", "write", "admin"]

DEFAULT_PROJECT = "default"
KEY_PREFIX = "sk-helio-"
KEY_MARKS = (KEY_PREFIX, "sk-helicone-")
"""How our keys begin, and Helicone's: neither may reach a provider, wherever it stands."""

SNAPSHOT_KEY = "heliograph:snapshot:keys"
"""Redis key that holds the newest snapshot, as JSON."""
SNAPSHOT_CHANNEL = "heliograph:snapshots"
"""Redis channel on which its version is announced."""


class Key(msgspec.Struct, omit_defaults=True, frozen=True):
    id: str
    name: str
    project_id: str
    permissions: list[str]
    """Of `Permission`; an edge may meet words that only a newer control knows."""
    expires_ms: int | None = None
    """Milliseconds since 1970, UTC; null: never."""
    revoked: bool = False


class KeySnapshot(msgspec.Struct, frozen=True):
    """Every key there is, revoked ones too, so that a refusal can say why."""

    version: int
    """Grows with every change; microseconds since 1970 at the time of the change."""
    keys: dict[str, Key]
    """By `hash_key` of the key's text."""


def hash_key(text: str) -> str:
    """SHA-256 of a key, as hex: all that is ever stored of it. Keys are 256 random bits, so no salt is needed."""
    return hashlib.sha256(text.encode()).hexdigest()


def make_key() -> str:
    """A new key's text, shown once."""
    return KEY_PREFIX + secrets.token_urlsafe(32)
