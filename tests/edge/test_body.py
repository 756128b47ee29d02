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
        (b'{"model": null, "stream": null}', BodyFacts()),
        (b"[1, 2]", BodyFacts()),
        (b"{broken", BodyFacts()),
        (b"", BodyFacts()),
        (b"\xff\xfe", BodyFacts()),
        (b"[" * 100_000, BodyFacts()),
        (b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", BodyFacts()),
    ],
)
def test_a_body_says_model_stream_and_user_and_never_raises(body: bytes, facts: BodyFacts) -> None:
    assert read_body(body) == facts
