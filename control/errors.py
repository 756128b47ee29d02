"""What can go wrong for a caller of the API. Each class holds its status and a fixed code, also the metric's label.

ControlError
├── BadRequest 400          a value that may not be
├── InvalidKey 401          who is calling is not known
├── Forbidden 403           known, and not allowed
├── NotFound 404
├── Conflict 409
├── BodyTooLarge 413
├── QueryTooLarge 422       reads or gives more than a query may
├── DatabaseDown 503        projects and keys
├── StoreDown 503           ClickHouse
├── Busy 503                too many queries wait already
└── QueryTimeout 504
"""

SHOWN_MAX = 200
"""Characters of a caller's own value that an error repeats."""


class ControlError(Exception):
    status = 500
    code = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def details(self) -> dict[str, object]:
        """What the answer's `error` says beside code and message."""
        return {}


class BadRequest(ControlError):
    """Names the field, the value it had and what would be right."""

    status = 400
    code = "bad_request"

    def __init__(self, field: str, value: object, expected: str) -> None:
        self.field = field
        self.value = shown(value)
        self.expected = expected
        super().__init__(f"{field} = {self.value}: {expected}")

    def details(self) -> dict[str, object]:
        return {"field": self.field, "value": self.value, "expected": self.expected}


class InvalidKey(ControlError):
    status = 401
    code = "invalid_key"


class Forbidden(ControlError):
    status = 403
    code = "forbidden"


class NotFound(ControlError):
    status = 404
    code = "not_found"


class Conflict(ControlError):
    status = 409
    code = "conflict"


class BodyTooLarge(ControlError):
    status = 413
    code = "body_too_large"


class QueryTooLarge(ControlError):
    """The same query over a narrower time range may pass."""

    status = 422
    code = "query_too_large"


class DatabaseDown(ControlError):
    status = 503
    code = "database_unavailable"


class StoreDown(ControlError):
    status = 503
    code = "store_unavailable"


class Busy(ControlError):
    status = 503
    code = "busy"


class QueryTimeout(ControlError):
    """The same query over a narrower time range may pass."""

    status = 504
    code = "query_timeout"


def shown(value: object) -> str:
    """A caller's value as an error may repeat it: on one line, and not without end."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: SHOWN_MAX + 1])
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"
