"""Tells a finished call as an event and puts it into the spool. No credential gets past here."""

import logging
from typing import TypeVar

import msgspec

from edge import metrics
from edge.call import Call
from edge.capture import Capture
from edge.reading import read_here
from ingest.spool import Spool
from schemas.event import Body, Event, pack

log = logging.getLogger("heliograph.edge")

_MASK = b"***"
_SECRET_BYTES_MIN = 6
"""Shorter credentials are words that also stand in innocent places; masking those would garble the record."""

_TEXT_TYPES = ("", "application/json", "application/x-ndjson", "application/xml", "application/x-www-form-urlencoded")
_BINARY_READ = ("application/vnd.amazon.eventstream",)

T = TypeVar("T")


class Recorder:
    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    @property
    def crowded(self) -> bool:
        """The disk cannot keep up: whoever has recorded a call waits for `room` before the next."""
        return self._spool.crowded

    async def room(self) -> None:
        await self._spool.room()

    def record(self, call: Call, ended: float) -> None:
        """Put a call on record that was finished at `ended`."""
        event = self._event(call, ended)
        metrics.count_call(event)
        payload = pack(event)
        secrets = [s for s in call.secrets if len(s) >= _SECRET_BYTES_MIN and s in payload]
        if secrets:
            secrets.sort(key=len, reverse=True)  # one may be the beginning of another
            payload = pack(_masked(event, secrets))
        if not self._spool.append(payload):
            metrics.events_dropped.inc()

    def _event(self, call: Call, ended: float) -> Event:
        said, key, target = call.said, call.key, call.target
        assert said is not None
        assert key is not None
        assert target is not None
        latency_s = ended - call.started
        crowded = "spool_full" if self._spool.level == "no_bodies" else None
        event = Event(
            id=call.id,
            created_ms=call.created_ms,
            project_id=key.project_id,
            key_id=key.id or None,
            key_name=key.name or None,
            provider=target.provider,
            api=call.api,
            method=call.method,
            path=target.path,
            requested_model=call.requested_model,
            model_override=said.model_override,
            stream=call.stream,
            status=call.status,
            outcome=call.outcome,
            error_code=call.error_code,
            error_message=call.error_message,
            latency_ms=round(latency_s * 1000, 3),
            overhead_ms=round(max(latency_s - call.upstream_s, 0.0) * 1000, 3),
            name=said.name,
            user_id=said.user_id or call.body_user_id,
            session_id=said.session_id,
            session_path=said.session_path,
            session_name=said.session_name,
            properties=said.properties,
            features=said.features,
            request=_kept(call.request, said.content_type, "asked" if said.omit_request else crowded),
            request_type=said.content_type or None,
            response=_kept(call.response, call.answer_type, "asked" if said.omit_response else crowded),
            response_type=call.answer_type or None,
            attempts=call.attempts,
        )
        if call.first_byte is not None:
            event.first_token_ms = round((call.first_byte - call.started) * 1000, 3)
        if said.trace_id is not None:
            event.trace_id, event.parent_id = said.trace_id, said.parent_id
            event.span_id = call.id.replace("-", "")[-16:]
        omitted = said.omit_request or said.omit_response
        if (omitted or crowded) and call.response is not None:
            try:
                event.reading = read_here(event, call, counts=omitted)
            except Exception:  # a body nobody foresaw must not cost the call its row
                log.exception("an answer could not be read on the edge", extra={"id": event.id})
        return event


def _kept(capture: Capture | None, content_type: str, left_out: str | None) -> Body | None:
    if capture is None:
        return None
    if not left_out and content_type not in _TEXT_TYPES and not _is_text(content_type):
        left_out = "content_type"
    return capture.body(left_out)


def _is_text(content_type: str) -> bool:
    return content_type.startswith("text/") or content_type.endswith("+json") or content_type in _BINARY_READ


def _masked(event: Event, secrets: list[bytes]) -> Event:
    """The event with every occurrence of a secret replaced, wherever it stands."""

    def mask(value: T) -> T:
        masked: object = value
        for secret in secrets:
            if isinstance(masked, bytes):
                masked = masked.replace(secret, _MASK)
            elif isinstance(masked, str):
                masked = masked.replace(secret.decode("latin-1"), _MASK.decode())
        return masked  # type: ignore[return-value]

    def walk(value: object) -> object:
        if isinstance(value, dict):
            return {mask(k): mask(v) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, msgspec.Struct):
            changed = {field: walk(getattr(value, field)) for field in value.__struct_fields__}
            return type(value)(**changed)
        return mask(value)

    log.warning("a credential was found in a call's content and is masked in its record", extra={"id": event.id})
    masked = walk(event)
    assert isinstance(masked, Event)
    return masked
