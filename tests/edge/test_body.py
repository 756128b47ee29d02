import tracemalloc

import pytest

from edge.body import BodyFacts, read_body


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        (b'{"model": "gpt-4o", "stream": true, "user": "u1"}', BodyFacts("gpt-4o", True, "u1")),
        (b'{"model": "m", "safety_identifier": "s1"}', BodyFacts("m", False, "s1")),
        (b'{"model": "m", "metadata": {"user_id": "u2"}}', BodyFacts("m", False, "u2")),
        (b'{"model": "m", "user": "u1", "metadata": {"user_id": "u2"}}', BodyFacts("m", False, "u1")),
        (b'{"model": 5, "stream": "yes", "user": ["x"], "metadata": "y"}', BodyFacts()),
        (b'{"model": "m", "user": 7, "metadata": {"user_id": "u2"}}', BodyFacts("m", False, "u2")),
        (b'{"model": "m", "user": 42, "stream": true}', BodyFacts("m", True)),
        (b'{"model": null, "stream": null}', BodyFacts()),
        (b"[1, 2]", BodyFacts()),
        (b"{broken", BodyFacts()),
        (b"", BodyFacts()),
        (b"\xff\xfe", BodyFacts()),
        (b'{"model": "m", "metadata": {"user_id": "\xff"}}', BodyFacts("m")),
        (b'{"model": "m", "stream": 1, "user": "\xff", "metadata": {"user_id": "u2"}}', BodyFacts("m", False, "u2")),
        (b'{"model": "m", "stream": 1, "metadata": [{"user_id": "u2"}]}', BodyFacts("m")),
        (b'{"model": "", "user": ""}', BodyFacts("")),
        (b"[" * 100_000, BodyFacts()),
        (b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", BodyFacts()),
    ],
)
def test_a_body_says_model_stream_and_user_and_never_raises(body: bytes, facts: BodyFacts) -> None:
    assert read_body(body, 100) == facts


@pytest.mark.parametrize("odd", [b"", b', "stream": "yes"'], ids=["as it should be", "odd"])
def test_a_model_or_user_longer_than_any_name_is_none(odd: bytes) -> None:
    longest, longer = b"x" * 100, b"x" * 101
    body = b'{"model": "%s", "user": "%s"%s}'
    assert read_body(body % (longest, longest, odd), 100) == BodyFacts("x" * 100, False, "x" * 100)
    assert read_body(body % (longer, longer, odd), 100) == BodyFacts()


@pytest.mark.parametrize(
    "body", [b'{"metadata": [%s]}', b'{"stream": "yes", "messages": [%s]}'], ids=["metadata", "an odd field"]
)
def test_a_million_odd_values_are_passed_over_and_not_built(body: bytes) -> None:
    huge = body % b",".join([b"{}"] * 1_000_000)
    tracemalloc.start()
    read_body(huge, 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * len(huge)
