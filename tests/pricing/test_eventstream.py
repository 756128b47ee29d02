"""AWS event streams, built here as AWS documents them."""

import base64
import json
import struct
import zlib
from typing import Any

from pricing.answer import read_answer
from pricing.eventstream import frames, is_frame


def _frame(payload: bytes, **headers: str) -> bytes:
    block = b""
    for name, value in headers.items():
        header = f":{name.replace('_', '-')}".encode()
        block += bytes([len(header)]) + header + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    block += b"\x02:n\x04" + b"\x00\x00\x00\x2a" + b"\x02:t\x00"  # An integer and a true, to be stepped over.
    prelude = struct.pack(">II", 16 + len(block) + len(payload), len(block))
    frame = prelude + struct.pack(">I", zlib.crc32(prelude)) + block + payload
    return frame + struct.pack(">I", zlib.crc32(frame))


def _chunk(inner: Any) -> bytes:
    payload = json.dumps({"bytes": base64.b64encode(json.dumps(inner).encode()).decode(), "p": "abc"}).encode()
    return _frame(payload, event_type="chunk", message_type="event")


def test_a_frame_gives_its_kind_and_payload() -> None:
    body = _frame(b"{}", event_type="metadata", message_type="event")
    assert is_frame(body)
    assert [tuple(frame) for frame in frames(body + body)] == [("metadata", False, b"{}")] * 2


def test_a_broken_frame_costs_only_itself() -> None:
    good = _frame(b'{"a":1}', event_type="x", message_type="event")
    broken = bytearray(good)
    broken[-6] ^= 1
    assert [frame.payload for frame in frames(good + bytes(broken) + good)] == [b'{"a":1}'] * 2
    assert [frame.payload for frame in frames(good[:20] + good + good[:-3])] == [b'{"a":1}']


def test_many_broken_pieces_are_passed_over() -> None:
    good = _frame(b"{}", event_type="x", message_type="event")
    assert len(list(frames((b"garbage" + good) * 3_000))) == 3_000


def test_zeros_are_no_frames_and_take_linear_time() -> None:
    assert list(frames(bytes(300_000))) == []


def test_an_exception_in_the_stream_is_an_error() -> None:
    start = _frame(b'{"role":"assistant"}', event_type="messageStart", message_type="event")
    failed = _frame(b'{"message":"slow down"}', exception_type="throttlingException", message_type="exception")
    answer = read_answer("bedrock.converse_stream", start + failed, stream=True)
    assert answer.error is not None
    assert (answer.error.type, answer.error.message) == ("throttlingException", "slow down")
    assert not answer.complete


def test_the_models_own_usage_is_finer_than_bedrocks_metrics() -> None:
    body = b"".join(
        _chunk(event)
        for event in (
            {"type": "message_start", "message": {"model": "claude-x", "usage": {
                "input_tokens": 4, "cache_read_input_tokens": 90, "output_tokens": 1}}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
            {"type": "message_stop", "amazon-bedrock-invocationMetrics": {
                "inputTokenCount": 4, "outputTokenCount": 7, "invocationLatency": 9}},
        )
    )  # fmt: skip
    answer = read_answer("bedrock.invoke_stream", body, stream=True)
    assert answer.usage is not None
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == (94, 90, 7)
    assert (answer.model, answer.stop_reason, answer.complete) == ("claude-x", "end_turn", True)


def test_bedrocks_metrics_serve_models_that_say_nothing_themselves() -> None:
    body = _chunk({"outputs": [{"text": "Hi", "stop_reason": None}]}) + _chunk(
        {
            "outputs": [{"text": "!", "stop_reason": "stop"}],
            "amazon-bedrock-invocationMetrics": {"inputTokenCount": 14, "outputTokenCount": 2},
        }
    )
    answer = read_answer("bedrock.invoke_stream", body, stream=True)
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.stop_reason) == (14, 2, "stop")
