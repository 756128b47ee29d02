"""Reads an answer on the edge when its body does not leave it: asked so, or for want of room. The counts stay true."""

import msgspec

from edge.call import Call
from pricing.answer import read_answer
from pricing.settle import as_reported, settle
from schemas.event import Event, Reading, Usage


def read_here(event: Event, call: Call, *, counts: bool) -> Reading:
    """What the workers would have read from the bodies.

    Args:
        counts: False: what the provider does not report stays unknown. Counting takes milliseconds.
    """
    assert call.response is not None
    body = call.response.body()
    sent = call.request.body() if call.request is not None else None
    answer = read_answer(
        event.api, body.head, tail=body.tail, size=body.size, stream=event.stream, content_type=call.answer_type
    )
    settled = (
        settle(
            event.api,
            provider=event.provider,
            model=event.model_override or answer.model or event.requested_model,
            status=event.status,
            answer=answer,
            request_body=sent.head if sent else b"",
            request_tail=sent.tail if sent else b"",
            request_size=sent.size if sent else None,
        )
        if counts
        else as_reported(answer)
    )
    used = settled.usage
    return Reading(
        model=answer.model,
        stop_reason=answer.stop_reason,
        error_code=(answer.error.code or answer.error.type or "error") if answer.error else None,
        complete=answer.complete,
        usage=Usage(
            source=settled.source,
            input_tokens=used.input_tokens,
            output_tokens=used.output_tokens,
            cache_read_tokens=used.cache_read_tokens,
            cache_write_tokens=used.cache_write_tokens,
            reasoning_tokens=used.reasoning_tokens,
            input_audio_tokens=used.input_audio_tokens,
            output_audio_tokens=used.output_audio_tokens,
        ),
        counts=msgspec.to_builtins(used, builtin_types=()),
    )
