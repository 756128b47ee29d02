"""Who is calling, answered from memory alone."""

import time

from edge.errors import Forbidden, InvalidKey, NotReady
from edge.policies.snapshots import KeySnapshots
from schemas.keys import DEFAULT_PROJECT, Key, hash_key

_DEFAULT = Key(id="", name="", project_id=DEFAULT_PROJECT, permissions=["proxy"])
_CACHE_MAX = 10_000
_KEY_LENGTH_MAX = 256


class Auth:
    def __init__(self, snapshots: KeySnapshots, *, required: bool) -> None:
        self._snapshots = snapshots
        self._required = required
        self._hashes: dict[str, str] = {}

    def check(self, text: str | None) -> Key:
        """The key that speaks, or the default project's stand-in for a call without one.

        Raises:
            InvalidKey: none where one is needed, unknown, revoked or expired.
            Forbidden: it may not call providers.
            NotReady: this edge has never seen the keys; a retry may find them.
        """
        if text is None:
            if self._required:
                raise InvalidKey(
                    "This gateway needs a Heliograph key: send the header 'Helicone-Auth: Bearer <key>'. "
                    "A key is made with: heliograph keys create --name NAME"
                )
            return _DEFAULT
        keys = self._snapshots.keys
        if keys is None:
            raise NotReady("The gateway has not learnt its keys yet (Redis has not been reached). Try again shortly.")
        key = keys.get(self._hash(text)) if len(text) <= _KEY_LENGTH_MAX else None
        if key is None:
            raise InvalidKey("This Heliograph key is not known here.")
        if key.revoked:
            raise InvalidKey(f"The Heliograph key {key.name!r} has been revoked.", key=key)
        if key.expires_ms is not None and key.expires_ms <= time.time() * 1000:
            raise InvalidKey(f"The Heliograph key {key.name!r} has expired.", key=key)
        if "proxy" not in key.permissions:
            raise Forbidden(f"The Heliograph key {key.name!r} has no permission to call providers (proxy).", key=key)
        return key

    def _hash(self, text: str) -> str:
        known = self._hashes.get(text)
        if known is None:
            if len(self._hashes) >= _CACHE_MAX:
                self._hashes.clear()
            known = self._hashes[text] = hash_key(text)
        return known
