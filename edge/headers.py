"""What a call's headers say to us, and which of them go on to the provider. One pass over the list, no I/O."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from edge.errors import BadFraming, BadHeader, EdgeError, HeadersTooLarge
from edge.features import FEATURES, boolean, without_credentials
from edge.upstream.protocol import Header
from edge.upstream.targets import TargetUrl
from schemas.keys import KEY_MARKS
from schemas.settings import BoundSettings


class Said:
    """What the caller says of the call."""

    # What most calls leave unsaid stands here, once for all of them.
    problem: EdgeError | None = None
    """The first thing wrong with them. Kept rather than raised, so that the refusal has a row with its key."""
    has_host = False
    host = ""
    content_type = ""
    content_length: int | None = None
    transfer_coding = False
    request_coding = b""
    accepts: bytes | None = None
    upgrade = False
    speaks_anthropic = False
    key: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    session_path: str | None = None
    session_name: str | None = None
    name: str | None = None
    request_id: str | None = None
    model_override: str | None = None
    omit_request = False
    omit_response = False
    target_url: TargetUrl | None = None
    trace_id: str | None = None
    parent_id: str | None = None

    def __init__(self) -> None:
        self.forward: list[Header] = []
        """Headers for the provider, in order, without host, framing and what is ours."""
        self.secrets: list[bytes] = []
        """Credentials seen, for masking in what is recorded."""
        self.properties: dict[str, str] = {}
        self.features: dict[str, str] = {}


class _Shape(NamedTuple):
    """What a request's header names say, worked out once: a client sends the same names in the same order every time."""

    read: list[tuple[int, "Rule"]]
    """Places of the headers we read, and how."""
    passed: list[int]
    """Places of those that go on."""
    connections: list[int]
    names_bytes: int


_name_of = itemgetter(0)
_shapes: dict[tuple[bytes, ...], _Shape] = {}
_SHAPES_MAX = 2000
_SHAPE_BYTES_MAX = 4096
_REMEMBERED_BYTES = 256
"""Longer names and values are worked out each time: what strangers send must not fill the memory."""


def _shape(names: tuple[bytes, ...]) -> _Shape:
    shape = _Shape([], [], [], sum(map(len, names)))
    for place, name in enumerate(name.lower() for name in names):
        rule: Rule | None
        if name.startswith(_OURS):
            rule = _remembered_rule(name) if len(name) <= _REMEMBERED_BYTES else _rule_of_ours(name)
        else:
            rule = _RULES.get(name)
        if name == b"connection":
            shape.connections.append(place)
        elif rule is not None and rule is not _drop:
            shape.read.append((place, rule))
        if rule is None or rule in _PASSING:
            shape.passed.append(place)
    if len(_shapes) >= _SHAPES_MAX:
        _shapes.clear()
    if shape.names_bytes <= _SHAPE_BYTES_MAX:
        _shapes[names] = shape
    return shape


def read_headers(headers: Sequence[Header], bounds: BoundSettings) -> Said:
    """Read a request's headers. What is wrong with them stands in `problem`."""
    said = Said()
    names = tuple(map(_name_of, headers))
    shape = _shapes.get(names) or _shape(names)
    said.forward = [headers[place] for place in shape.passed]
    held_back: set[int] = set()
    for place, rule in shape.read:
        header = headers[place]
        try:
            if not rule(said, header[0], header[1], bounds):
                held_back.add(place)
        except BadHeader as problem:
            said.problem = said.problem or problem
    if held_back:
        said.forward = [headers[place] for place in shape.passed if place not in held_back]
    size = shape.names_bytes + sum([len(value) for _, value in headers]) + 4 * len(headers)
    if len(headers) > bounds.headers or size > bounds.header_bytes:
        said.problem = HeadersTooLarge(
            f"The request's head has {len(headers)} headers of {size} bytes together; "
            f"at most {bounds.headers} headers of {bounds.header_bytes} bytes are accepted."
        )
    listed = b",".join([headers[place][1] for place in shape.connections]) if shape.connections else b""
    if listed and listed.lower() not in (b"keep-alive", b"close"):
        named = {part.strip().lower() for part in listed.split(b",")}
        said.upgrade = said.upgrade and b"upgrade" in named
        said.forward = [header for header in said.forward if header[0].lower() not in named]
    else:
        said.upgrade = False
    return said


# Rules for headers that are not ours by prefix: read what concerns us. Those of `_PASSING` go on to the provider, unless
# their rule says False; the others do not, whatever it says.

Rule = Callable[[Said, bytes, bytes, BoundSettings], bool]


_HOST = re.compile(rb"[A-Za-z0-9.:_~%\[\]-]*")


def _drop(said: Said, name: bytes, value: bytes, bounds: BoundSettings) -> bool:
    return False


def _host(said: Said, name: bytes, value: bytes, bounds: BoundSettings) -> bool:
    value = value.strip()
    if said.has_host or not _HOST.fullmatch(value):
        said.problem = said.problem or BadFraming(
            f"Host is {_text(value)[:100]!r}; one is needed, and it names a host."
        )
    said.has_host = True
    said.host = value.decode("latin-1")
    return True


def _content_type(said: Said, name: bytes, value: bytes, bounds: BoundSettings) -> bool:
    said.content_type = media_type(value)
    return True


def media_type(value: bytes) -> str:
    """`application/json` of `Application/JSON; charset=utf-8`."""
    return _remembered_type(value) if len(value) <= _REMEMBERED_BYTES else _media_type(value)


def _media_type(value: bytes) -> str:
    return value.split(b";", 1)[0].strip().lower().decode("latin-1")


def _content_length(said: Said, name: bytes, value: bytes, bounds: BoundSettings) -> bool:
    # The server refuses what is not a number and two lengths that differ; what reaches us is one.
    said.content_length = int(value) if value.isdigit() else None
    return True


def _transfer_encoding(said: Said, name: bytes, value: bytes, bounds: BoundSettings) -> bool:
    if value.strip().lower() != b"chunked":
        said.problem = said.problem or BadFraming(
            f"Transfer-Encoding is {_text(value)[:100]!r}; only chunked is accepted, by itself."
        )
    said.transfer_coding = True
    return True


def _content_encoding(said: Said, name: bytes, value: bytes, bounds: BoundSettings) -> bool:
    said.request_coding = value.strip().lower()
    return True


def _accept_encoding(said: Said, name: bytes, value: bytes, bounds: BoundSettings) -> bool:
    said.accepts = _remembered_readable(value) if len(value) <= _REMEMBERED_BYTES else _readable(value)
    return True


def _readable(value: bytes) -> bytes:
    """The codings that we can read for the record: the provider may use no others. The client gets its bytes as they
    come."""
    codings = (coding.strip() for coding in value.split(b","))
    return b", ".join(c for c in codings if c.split(b";", 1)[0].strip().lower() in (b"gzip", b"deflate", b"identity"))


_remembered_type = lru_cache(maxsize=1000)(_media_type)
_remembered_readable = lru_cache(maxsize=1000)(_readable)


def _upgrade(said: Said, name: bytes, value: bytes, bounds: BoundSettings) -> bool:
    said.upgrade = value.lower() == b"websocket"  # anything else need not be taken up (RFC 9110, 7.8)
    return True


_KEY_MARKS = tuple(mark.encode() for mark in KEY_MARKS)


def _credential(said: Said, name: bytes, value: bytes, bounds: BoundSettings) -> bool:
    scheme, _, rest = value.partition(b" ")
    secret = (rest if rest and scheme.isalpha() else value).strip()
    if secret:
        said.secrets.append(secret)
    if secret.startswith(_KEY_MARKS):
        # One of our keys where a provider's belongs: it is taken as ours, and no provider ever sees it.
        said.key = said.key or secret.decode("latin-1")
        return False
    return True


def _anthropic(said: Said, name: bytes, value: bytes, bounds: BoundSettings) -> bool:
    said.speaks_anthropic = True
    return True


# Version ff is none, and what follows the flags in version 00 makes it none; later versions may say more.
_TRACEPARENT = re.compile(rb"^(?!ff)(?!00-.{53})[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-|$)")


def _traceparent(said: Said, name: bytes, value: bytes, bounds: BoundSettings) -> bool:
    if (found := _TRACEPARENT.match(value.strip())) and found[1].strip(b"0") and found[2].strip(b"0"):
        said.trace_id, said.parent_id = found[1].decode(), found[2].decode()
    return True


_MAX_AGE = re.compile(r"(?:^|,)\s*(s-maxage|max-age|stale-while-revalidate)\s*=\s*([^,]*)", re.IGNORECASE)


def _cache_control(said: Said, name: bytes, value: bytes, bounds: BoundSettings) -> bool:
    text = _text(value)
    for found in _MAX_AGE.finditer(text):
        if not found[2].strip().strip('"').isdigit():
            raise BadHeader("Cache-Control", text, f"{found[1]}=SECONDS, a whole number")
    said.features["cache-control"] = text
    return True


_RULES: dict[bytes, Rule] = {
    b"host": _host,
    b"connection": _drop,
    b"keep-alive": _drop,
    b"proxy-connection": _drop,
    b"proxy-authenticate": _drop,
    b"proxy-authorization": _drop,
    b"te": _drop,
    b"trailer": _drop,
    b"expect": _drop,
    b"upgrade": _upgrade,
    b"transfer-encoding": _transfer_encoding,
    b"content-length": _content_length,
    b"content-type": _content_type,
    b"content-encoding": _content_encoding,
    b"accept-encoding": _accept_encoding,
    b"authorization": _credential,
    b"x-api-key": _credential,
    b"api-key": _credential,
    b"x-goog-api-key": _credential,
    b"x-amz-security-token": _credential,
    b"aws-access-key": _credential,
    b"aws-secret-key": _credential,
    b"aws-session-token": _credential,
    b"anthropic-version": _anthropic,
    b"traceparent": _traceparent,
    b"cache-control": _cache_control,
}

_PASSING = (_content_type, _content_encoding, _credential, _anthropic, _traceparent, _cache_control)


# Ours: everything that starts `helicone-` or `heliograph-`. None of it goes on.

_OURS = (b"helicone-", b"heliograph-")
_PROPERTY = "property-"
_SHOWN_LENGTH = 100
_UUID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")


def _rule_of_ours(name: bytes) -> Rule:
    """What to do with one of our headers."""
    short = name[name.index(b"-") + 1 :].decode("latin-1")
    if short.startswith(_PROPERTY):
        return _property_rule(short[len(_PROPERTY) :])
    if (attribute := _PLAIN.get(short)) is not None:
        return _plain_rule(short, attribute)
    if (setter := _SETTERS.get(short)) is not None:
        return _setter_rule(short, setter)
    if (check := FEATURES.get(short)) is not None:
        return _feature_rule(short, check)
    return _drop


_remembered_rule = lru_cache(maxsize=2000)(_rule_of_ours)


def _property_rule(name: str) -> Rule:
    shown = f"Helicone-Property-{name}"

    def read(said: Said, header: bytes, value: bytes, bounds: BoundSettings) -> bool:
        text = _text(value)
        if not 0 < len(name) <= bounds.property_bytes:
            accepted = f"a name of 1 to {bounds.property_bytes} bytes after Helicone-Property-"
            raise BadHeader(shown[:_SHOWN_LENGTH], text, accepted)
        if len(value) > bounds.property_bytes:
            raise BadHeader(shown, text, f"at most {bounds.property_bytes} bytes")
        if len(said.properties) >= bounds.properties and name not in said.properties:
            raise BadHeader(shown, text, f"at most {bounds.properties} properties on a call")
        said.properties[name] = text
        return True

    return read


def _setter_rule(short: str, setter: Callable[[Said, str], None]) -> Rule:
    def read(said: Said, header: bytes, value: bytes, bounds: BoundSettings) -> bool:
        text = _text(value)
        if len(value) > bounds.property_bytes and short not in _LONG:
            raise BadHeader(_shown(short), text, f"at most {bounds.property_bytes} bytes")
        setter(said, text)
        return True

    return read


def _feature_rule(short: str, check: Callable[[str, str], None]) -> Rule:
    def recorded(value: bytes) -> str:
        text = _text(value)
        check(_shown(short), text)
        return without_credentials(short, text)

    remembered = lru_cache(maxsize=256)(recorded)  # a caller says the same with every call

    def read(said: Said, header: bytes, value: bytes, bounds: BoundSettings) -> bool:
        said.features[short] = remembered(value) if len(value) <= _REMEMBERED_BYTES else recorded(value)
        return True

    return read


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _shown(short: str) -> str:
    return "Helicone-" + "-".join(part.capitalize() for part in short.split("-"))


def _auth(said: Said, text: str) -> None:
    scheme, _, key = text.strip().partition(" ")
    said.key = key.strip() if scheme.lower() == "bearer" and key.strip() else text.strip()
    said.secrets.append(said.key.encode())


def _request_id(said: Said, text: str) -> None:
    said.request_id = text.strip().lower()
    if not _UUID.match(said.request_id):
        raise BadHeader("Helicone-Request-Id", text, "a UUID, like 0193a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b")


def _omit_request(said: Said, text: str) -> None:
    said.omit_request |= boolean("Helicone-Omit-Request", text)  # said twice, the careful word holds


def _omit_response(said: Said, text: str) -> None:
    said.omit_response |= boolean("Helicone-Omit-Response", text)


def _target_url(said: Said, text: str) -> None:
    said.target_url = TargetUrl("Helicone-Target-Url", text) if text else None


def _api_base(said: Said, text: str) -> None:
    said.target_url = TargetUrl("Helicone-OpenAI-Api-Base", text) if text else None


def _plain_rule(short: str, attribute: str) -> Rule:
    def read(said: Said, header: bytes, value: bytes, bounds: BoundSettings) -> bool:
        if len(value) > bounds.property_bytes:
            raise BadHeader(_shown(short), _text(value), f"at most {bounds.property_bytes} bytes")
        setattr(said, attribute, _text(value) or None)
        return True

    return read


_PLAIN = {
    "user-id": "user_id",
    "session-id": "session_id",
    "session-path": "session_path",
    "session-name": "session_name",
    "request-name": "name",
    "model-override": "model_override",
}
_SETTERS: dict[str, Callable[[Said, str], None]] = {
    "auth": _auth,
    "request-id": _request_id,
    "omit-request": _omit_request,
    "omit-response": _omit_response,
    "target-url": _target_url,
    "openai-api-base": _api_base,
}
_LONG = {"target-url", "openai-api-base"}
