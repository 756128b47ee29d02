"""Where a call goes: from its host, path and headers to a provider's origin and the path sent there."""

import difflib
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from edge.errors import BadHeader, NotBuilt, TargetRefused, UnknownProvider, bare_url
from edge.upstream.protocol import Origin
from schemas.apis import Shape
from schemas.providers import ALIASES, catalogue
from schemas.settings import EdgeSettings, ProviderSettings

_DEFAULT_PORTS = {"http": 80, "https": 443}
_PART = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$")
_FOUND_MAX = 1000
_REMEMBERED_LENGTH = 1024
_NEAR_LENGTH = 40
"""Names near to a longer one are not looked for: it takes time, and nobody mistypes a name like that."""
_ANTHROPIC_PATHS = ("/v1/messages", "/v1/complete")
_BELOW_ANTHROPIC_PATHS = tuple(path + "/" for path in _ANTHROPIC_PATHS)


class Target(NamedTuple):
    """One upstream to ask."""

    provider: str
    shape: Shape
    origin: Origin
    path: str
    """Path to send, query left out."""


class TargetUrl(NamedTuple):
    """A URL by which a caller names the target, and the header it stood in."""

    header: str
    url: str


class _Entry(NamedTuple):
    """A provider as settings and catalogue together make it."""

    id: str
    shape: Shape
    template: str
    """Its origin, perhaps with parts in braces that the path must fill."""
    parts: list[str]
    origin: Origin | None
    """The origin, when nothing is to be filled in."""
    local: bool
    """On this machine by the catalogue's word alone: reachable only once the operator says where."""


class Targets:
    """Every place this edge may send to."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._entries: dict[str, _Entry] = {}
        overrides = {_setting_id(id_): given for id_, given in settings.providers.items()}
        for provider in catalogue().values():
            given = overrides.pop(_setting_id(provider.id), ProviderSettings())
            shape = given.shape or provider.shape
            self._entries[provider.id] = _entry(
                provider.id, shape, provider.origin_template, provider.host_parts, given
            )
        for id_, given in overrides.items():  # providers of the operator's own
            name = id_.replace("_", "-")
            like = catalogue().get(given.stands_for or "")
            shape = given.shape or (like.shape if like else "openai")
            self._entries[name] = _entry(like.id if like else name, shape, "", [], given)
        self._by_name = {**{alias: self._entries[id_] for alias, id_ in ALIASES.items()}, **self._entries}
        self._by_origin = {e.origin[:3]: e for e in self._entries.values() if e.origin is not None and not e.local}
        self._patterns = [(_pattern(e.template), e) for e in self._entries.values() if e.parts and e.template]
        self._allowed = {_host_port(host) for host in settings.allowed_targets}
        self._found = lru_cache(_FOUND_MAX)(self._find)
        self._near = lru_cache(_FOUND_MAX)(self._near_names)

    def find(self, path: str, host: str, *, target_url: TargetUrl | None, speaks_anthropic: bool) -> Target:
        """`_find`, remembered: the same call goes to the same place."""
        known = len(path) + len(host) + (len(target_url.url) if target_url else 0) <= _REMEMBERED_LENGTH
        find = self._found if known else self._find
        return find(path, host, target_url=target_url, speaks_anthropic=speaks_anthropic)

    def _find(self, path: str, host: str, *, target_url: TargetUrl | None, speaks_anthropic: bool) -> Target:
        """The target of a call.

        Args:
            path: as sent, a Heliograph key in it already cut.
            host: the Host header.
            speaks_anthropic: the call carries `anthropic-version`, which only Anthropic's own clients send.

        Raises:
            UnknownProvider, TargetRefused, BadHeader, NotBuilt: see their messages.
        """
        if path.startswith("/v1/gateway/"):
            name, _, rest = path[len("/v1/gateway/") :].partition("/")
            return self._named(name, "/" + rest)
        label = _label(host)
        if label is not None:
            if label == "gateway":
                return self._by_url(target_url, path.removeprefix("/gateway"))
            if label == "ai-gateway":
                raise _unified()
            if label in self._by_name:
                return self._plain(label, path, target_url)
        first, slash, rest = path[1:].partition("/")
        if first == "v1":
            anthropic = speaks_anthropic or is_anthropic(path)
            return self._plain("anthropic" if anthropic else "openai", path, target_url)
        if first == "gateway":
            return self._by_url(target_url, slash + rest)
        if first == "ai":
            raise _unified()
        return self._named(first, slash + rest)

    def _plain(self, name: str, path: str, target_url: TargetUrl | None) -> Target:
        """The API of one provider, perhaps at another base (Helicone-OpenAI-Api-Base)."""
        return self._named(name, path) if target_url is None else self._by_url(target_url, path)

    def _named(self, name: str, path: str) -> Target:
        entry = self._by_name.get(name) or self._by_name.get(name.lower())
        if entry is None and not name:
            raise UnknownProvider("The path names no provider. It begins with /v1/, /<provider>/ or /gateway/.")
        if entry is None:
            near = self._near(name.lower()) if len(name) <= _NEAR_LENGTH else []
            hint = (
                f"Near names: {', '.join(near)}."
                if near
                else "Providers are openai, anthropic, google, groq and others."
            )
            raise UnknownProvider(
                f"There is no provider {name[:100]!r}. A path begins with /v1/, /<provider>/ or /gateway/. {hint}"
            )
        if entry.local:
            raise TargetRefused(
                f"Provider {entry.id} is a server on this machine; the operator must say where, with "
                f"EDGE_PROVIDERS__{_setting_id(entry.id).upper()}__BASE_URL."
            )
        origin = entry.origin
        if origin is None:
            origin, path = _fill(entry, path)
        return Target(entry.id, entry.shape, origin, path or "/")

    def _near_names(self, name: str) -> list[str]:
        return difflib.get_close_matches(name, self._by_name, n=3, cutoff=0.5)

    def _by_url(self, target_url: TargetUrl | None, path: str) -> Target:
        """The target that a header names: a provider of the catalogue, or one the operator allows."""
        accepted = "an http:// or https:// URL of a provider without user or password, like https://api.together.xyz"
        if target_url is None:
            raise BadHeader("Helicone-Target-Url", "", accepted)
        header, url = target_url
        try:
            parts = urlsplit(url.strip())
            port = _DEFAULT_PORTS.get(parts.scheme, 0) if parts.port is None else parts.port
        except ValueError:
            raise BadHeader(header, bare_url(url), accepted) from None
        host = (parts.hostname or "").rstrip(".")
        if not host or not port or parts.username or parts.password:
            raise BadHeader(header, bare_url(url), accepted)
        entry = self._by_origin.get((parts.scheme, host, port)) or next(
            (e for pattern, e in self._patterns if pattern.fullmatch(f"{parts.scheme}://{host}:{port}")), None
        )
        allowed = (host, port) in self._allowed or (host, None) in self._allowed
        if entry is None and not allowed:
            shown = f"[{host}]" if ":" in host else host
            raise TargetRefused(
                f"{header} names {parts.scheme}://{shown}:{port}, which is neither a provider of the catalogue "
                "nor on the operator's list (EDGE_ALLOWED_TARGETS)."
            )
        known = entry.origin is not None and entry.origin.private_allowed if entry else False
        origin = Origin(parts.scheme, host, port, private_allowed=allowed or known)
        return Target(entry.id if entry else host, entry.shape if entry else "openai", origin, path or "/")


def is_anthropic(path: str) -> bool:
    return path.startswith(_ANTHROPIC_PATHS) and (path in _ANTHROPIC_PATHS or path.startswith(_BELOW_ANTHROPIC_PATHS))


def _entry(id_: str, shape: Shape, template: str, parts: list[str], given: ProviderSettings) -> _Entry:
    if given.base_url is not None:
        return _Entry(id_, shape, given.base_url, [], _origin(given.base_url, private_allowed=True), local=False)
    for part in [p for p in parts if p in given.parts]:
        template = template.replace("{" + part + "}", given.parts[part])
    left = re.findall(r"\{(\w+)\}", template)
    if left or not template:
        return _Entry(id_, shape, template, left, None, local=not template or _is_whole_host(template))
    origin = _origin(template, private_allowed=False)
    return _Entry(id_, shape, template, [], origin, local=origin.host in ("127.0.0.1", "localhost"))


def _fill(entry: _Entry, path: str) -> tuple[Origin, str]:
    """Cut the template's parts from the path's front and fill them in."""
    template = entry.template
    for part in entry.parts:
        value, slash, rest = path[1:].partition("/")
        if not _PART.match(value):
            raise UnknownProvider(
                f"Provider {entry.id} needs its {part} in the path: /{entry.id}/<{part}>/…; {value[:100]!r} cannot be one."
            )
        template, path = template.replace("{" + part + "}", value), slash + rest
    # Google's name for "nowhere in particular" is a host without a place.
    return _origin(template.replace("//global-", "//"), private_allowed=False), path


def _origin(url: str, *, private_allowed: bool) -> Origin:
    parts = urlsplit(url)
    return Origin(
        parts.scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme], private_allowed=private_allowed
    )


def _is_whole_host(template: str) -> bool:
    """Whether a part is the host itself: such a one is the operator's to fill, never a caller's."""
    return re.fullmatch(r"(https?://)?\{\w+\}", template) is not None


def _pattern(template: str) -> re.Pattern[str]:
    if _is_whole_host(template):
        return re.compile(r"(?!)")
    escaped = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    return re.compile(re.sub(r"\{\w+\}", r"[A-Za-z0-9-]+", escaped) + ":443")


def _setting_id(id_: str) -> str:
    """A provider's id as environment variables can write it."""
    return re.sub(r"[^a-z0-9]", "_", id_.lower())


def _host_port(text: str) -> tuple[str, int | None]:
    parts = urlsplit(text if "://" in text else f"//{text}")
    return (parts.hostname or "").rstrip("."), parts.port or _DEFAULT_PORTS.get(parts.scheme)


def _label(host: str) -> str | None:
    """The first label of a host of several, when it can name a provider."""
    name = host.partition(":")[0]
    first, dot, rest = name.partition(".")
    return first.lower() if dot and not first.isdigit() and rest else None


def _unified() -> NotBuilt:
    return NotBuilt(
        "The unified gateway (/ai/v1) is not part of this version. Point base_url at /v1 (OpenAI) or /<provider>/…."
    )
