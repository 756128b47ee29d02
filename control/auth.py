"""Who is calling, and what they may. A key sees its own project and nothing else."""

import time
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from starlette.requests import Request

from control.errors import Forbidden, InvalidKey
from control.keys import Keys
from schemas.keys import DEFAULT_PROJECT, Permission

# What a proxy on this machine adds: behind one, every caller's peer address is loopback.
_PROXIED = (
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "via",
    "cf-connecting-ip",
)
_AUTH_HEADERS = ("helicone-auth", "heliograph-auth", "authorization")


class Caller(NamedTuple):
    project_id: str
    key_id: str | None
    """None: a caller on this machine without a key."""
    permissions: tuple[Permission, ...]


async def identify(request: Request, keys: Keys, *, local: bool) -> Caller:
    """
    Args:
        local: callers on this machine may read the default project without a key.

    Raises:
        InvalidKey: no key where one is needed, or one that is unknown, revoked or expired.
        DatabaseDown: it cannot be told just now.
    """
    text = _bearer(request)
    if text is None:
        if local and is_local(request):
            return Caller(DEFAULT_PROJECT, None, ("read",))
        raise InvalidKey("a key is needed: Authorization: Bearer <key>, or Helicone-Auth: Bearer <key>")
    info = await keys.find(text)
    if info is None:
        raise InvalidKey("this key is not known; `heliograph keys list` shows those that are")
    state = info.state(time.time_ns() // 1_000_000)
    if state != "active":
        raise InvalidKey(f"this key is {state}")
    return Caller(info.project_id, info.id, tuple(info.permissions))


def require(caller: Caller, permission: Permission) -> None:
    """
    Raises:
        Forbidden: names the permission that is missing.
    """
    if permission not in caller.permissions:
        who = "a caller without a key" if caller.key_id is None else "this key"
        raise Forbidden(f"{who} lacks the permission {permission!r}; it has {', '.join(caller.permissions)}")


def is_local(request: Request) -> bool:
    """Whether the caller is a program on this machine, or a page this server itself served.

    A loopback peer is not enough. A proxy here makes one of everybody. A page from elsewhere can make this machine's
    browser call us: its name may even resolve to 127.0.0.1 (DNS rebinding), but then the Host header bears that name.
    """
    if request.client is None or not _is_loopback(request.client.host):
        return False
    if any(name in request.headers for name in _PROXIED):
        return False
    hosts = request.headers.getlist("host")
    if len(hosts) != 1 or not _is_loopback(_without_port(hosts[0])):
        return False
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    origin = request.headers.get("origin")
    return origin is None or origin in (f"http://{hosts[0]}", f"https://{hosts[0]}")


def _bearer(request: Request) -> str | None:
    for name in _AUTH_HEADERS:
        values = request.headers.getlist(name)
        if not values:
            continue
        scheme, _, token = values[0].strip().partition(" ")
        token = token.strip()
        if len(values) != 1 or scheme.lower() != "bearer" or not token:
            raise InvalidKey(f"{name} must be given once, as: Bearer <key>")
        return token
    return None


def _without_port(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
