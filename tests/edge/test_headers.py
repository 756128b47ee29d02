import pytest

from edge.errors import BadHeader, HeadersTooLarge
from edge.headers import Said, read_headers
from schemas.settings import BoundSettings

BOUNDS = BoundSettings()


def read(*headers: tuple[str, str], bounds: BoundSettings = BOUNDS) -> Said:
    return read_headers([(name.lower().encode(), value.encode()) for name, value in headers], bounds)


def forwarded(said: Said) -> dict[bytes, bytes]:
    return dict(said.forward)


@pytest.mark.parametrize("prefix", ["Helicone", "Heliograph"])
def test_everything_ours_is_read_and_none_of_it_goes_on(prefix: str) -> None:
    said = read(
        (f"{prefix}-Auth", "Bearer sk-helio-abc"),
        (f"{prefix}-User-Id", "u1"),
        (f"{prefix}-Session-Id", "s1"),
        (f"{prefix}-Session-Path", "/a/b"),
        (f"{prefix}-Session-Name", "talk"),
        (f"{prefix}-Property-Environment", "production"),
        (f"{prefix}-Request-Name", "greeting"),
        (f"{prefix}-Request-Id", "0193A1B2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"),
        (f"{prefix}-Model-Override", "gpt-4o"),
        (f"{prefix}-Omit-Request", "TRUE"),
        (f"{prefix}-Omit-Response", "false"),
        (f"{prefix}-Cache-Enabled", "true"),
        (f"{prefix}-Something-New", "x"),
        ("Accept", "*/*"),
    )
    assert said.problem is None
    assert (said.key, said.user_id, said.session_id, said.session_path) == ("sk-helio-abc", "u1", "s1", "/a/b")
    assert (said.session_name, said.name, said.model_override) == ("talk", "greeting", "gpt-4o")
    assert said.request_id == "0193a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
    assert (said.omit_request, said.omit_response) == (True, False)
    assert said.properties == {"environment": "production"}
    assert said.features == {"cache-enabled": "true"}
    assert said.forward == [(b"accept", b"*/*")]


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("Helicone-Request-Id", "not-a-uuid", "a UUID"),
        ("Helicone-Omit-Request", "yes", "true or false"),
        ("Helicone-Cache-Enabled", "1", "true or false"),
        ("Helicone-Cache-Bucket-Max-Size", "0", "from 1 to 10000"),
        ("Helicone-Cache-Bucket-Max-Size", "ten", "from 1 to 10000"),
        ("Helicone-Cache-Mode", "fuzzy", "exact or semantic"),
        ("Helicone-Cache-Threshold", "0.2", "from 0.5 to 1"),
        ("Helicone-Retry-Num", "11", "from 0 to 10"),
        ("Helicone-Retry-Factor", "nan", "a number from 1"),
        ("Helicone-RateLimit-Policy", "many;w=60", "quota;w=seconds"),
        ("Helicone-RateLimit-Policy", "10;u=request", "quota;w=seconds"),
        ("Helicone-Timeout", "soon", "a number"),
        ("Cache-Control", "max-age=week", "SECONDS"),
        ("Helicone-Property-", "x", "a name of 1 to 1024 bytes after"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_right(name: str, value: str, accepted: str) -> None:
    problem = read((name, value)).problem
    assert isinstance(problem, BadHeader)
    assert problem.status == 400
    assert name.lower() in problem.message.lower()
    assert value in problem.message
    assert accepted in problem.message


@pytest.mark.parametrize(
    "policy",
    ["100;w=3600;u=user", "1000;w=86400;u=org", "10;w=60", "w=60;10;u=request", "500;w=3600;u=cents;s=user",
     "10;w=60, 1000;w=86400;u=org", "200000;w=60;u=token;s=team;fail=closed"],
)  # fmt: skip
def test_a_policy_of_the_contract_is_accepted_and_recorded(policy: str) -> None:
    said = read(("Helicone-RateLimit-Policy", policy))
    assert said.problem is None
    assert said.features == {"ratelimit-policy": policy}


@pytest.mark.parametrize(
    "value", ["no-cache", "max-age=60", 'private, s-maxage="3"', "something-else", "max-age=1,no-store"]
)
def test_known_and_unknown_cache_directives_pass(value: str) -> None:
    said = read(("Cache-Control", value))
    assert said.problem is None
    assert forwarded(said) == {b"cache-control": value.encode()}


def test_a_body_that_one_of_two_words_omits_is_omitted() -> None:
    said = read(*((f"Helicone-Omit-{what}", word) for what in ("Request", "Response") for word in ("true", "false")))
    assert (said.omit_request, said.omit_response) == (True, True)


@pytest.mark.parametrize("host", ["x", "x:8 ", "[::1]:8080", "a_b.example", "xn--bcher-kva.example", ""])
def test_a_host_is_read_as_it_may_be_written(host: str) -> None:
    said = read(("Host", host))
    assert said.problem is None
    assert said.host == host.strip()
    assert read(("Host", host), ("Host", "y")).problem is not None


def test_a_propertys_name_is_bounded_too() -> None:
    assert read(("Helicone-Property-" + "n" * 1024, "x")).problem is None
    problem = read(("Helicone-Property-" + "n" * 1025, "x")).problem
    assert problem is not None
    assert "a name of 1 to 1024 bytes" in problem.message
    assert len(problem.message) < 300


@pytest.mark.parametrize(
    ("name", "targets", "recorded"),
    [
        (
            "Fallbacks",
            '[{"target-url": "https://u:sk-secret@x.example/v1?key=sk-secret", "onCodes": [500], '
            '"headers": {"Authorization": "Bearer sk-secret"}, "bodyKeyOverride": {"api_key": "sk-secret"}}]',
            '[{"onCodes":[500],"target-url":"(not shown)"}]',
        ),
        (
            "Fallbacks",
            '[{"target-url": "https://x.example/v1#sk-secret", "provider": {"key": "sk-secret"}, "onCodes": ["sk-secret"]}]',
            '[{"onCodes":[],"target-url":"https://x.example/v1"}]',
        ),
        ("Fallback", '[{"provider": "openai", "model": "gpt-4o"}]', '[{"provider":"openai","model":"gpt-4o"}]'),
        ("Balance", '[{"key": "sk-secret", "weight": 2}, "sk-secret"]', '[{"weight":2}]'),
    ],
)
def test_of_a_list_of_targets_only_what_says_where_is_recorded(name: str, targets: str, recorded: str) -> None:
    said = read((f"Helicone-{name}", targets))
    assert said.problem is None
    assert said.features[name.lower()] == recorded


def test_a_fallback_that_is_not_json_is_refused_without_showing_it() -> None:
    problem = read(("Helicone-Fallbacks", "[{sk-secret")).problem
    assert isinstance(problem, BadHeader)
    assert "sk-secret" not in problem.message


def test_properties_are_bounded_in_number_and_size() -> None:
    many = [(f"Helicone-Property-{i}", "x") for i in range(65)]
    assert read(*many[:64]).problem is None
    assert "at most 64" in str(read(*many).problem)
    assert "at most 1024 bytes" in str(read(("Helicone-Property-Big", "x" * 1025)).problem)
    assert read(("Helicone-Property-Big", "x" * 1024)).problem is None


def test_names_and_ids_are_bounded_in_size() -> None:
    assert "at most 1024 bytes" in str(read(("Helicone-User-Id", "x" * 1025)).problem)


def test_a_head_beyond_the_bounds_is_refused() -> None:
    assert isinstance(read(*[(f"X-{i}", "y") for i in range(201)]).problem, HeadersTooLarge)
    assert isinstance(read(("X-Big", "y" * 65_600)).problem, HeadersTooLarge)
    assert read(*[(f"X-{i}", "y") for i in range(200)]).problem is None


def test_hop_by_hop_headers_and_those_named_by_connection_stay_here() -> None:
    said = read(
        ("Connection", "keep-alive, X-Private"),
        ("Keep-Alive", "timeout=5"),
        ("X-Private", "1"),
        ("Transfer-Encoding", "chunked"),
        ("Proxy-Authorization", "Basic abc"),
        ("TE", "trailers"),
        ("Host", "oai.example.com"),
        ("Content-Length", "12"),
        ("Expect", "100-continue"),
        ("X-Public", "2"),
    )
    assert said.forward == [(b"x-public", b"2")]
    assert (said.host, said.content_length, said.transfer_coding) == ("oai.example.com", 12, True)


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        ("gzip, deflate, br, zstd", b"gzip, deflate"),
        ("br", b""),
        ("identity", b"identity"),
        ("gzip;q=0.5", b"gzip;q=0.5"),
    ],
)
def test_only_codings_that_we_can_read_are_asked_of_the_provider(asked: str, passed: bytes) -> None:
    assert read(("Accept-Encoding", asked)).accepts == passed


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "api-key", "x-goog-api-key"])
def test_a_provider_key_goes_on_and_is_remembered_for_masking(name: str) -> None:
    said = read((name, "Bearer sk-provider-1" if name == "Authorization" else "sk-provider-1"))
    assert len(said.forward) == 1
    assert said.secrets == [b"sk-provider-1"]


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "api-key"])
def test_one_of_our_keys_in_a_providers_place_is_ours_and_never_goes_on(name: str) -> None:
    said = read((name, "Bearer sk-helio-1234" if name == "Authorization" else "sk-helio-1234"))
    assert said.forward == []
    assert said.key == "sk-helio-1234"


def test_a_trace_is_kept_and_a_malformed_one_ignored() -> None:
    good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    said = read(("traceparent", good))
    assert (said.trace_id, said.parent_id) == ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    assert read(("traceparent", f"cc{good[2:]}-more")).trace_id == said.trace_id
    assert read(("traceparent", f"{good} ")).trace_id == said.trace_id
    for bad in ("rubbish", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", f"ff{good[2:]}", f"{good}-more", f"{good}0"):
        said = read(("traceparent", bad))
        assert said.problem is None
        assert said.trace_id is None
        assert forwarded(said) == {b"traceparent": bad.encode()}


def test_values_that_are_not_utf_8_are_read_as_latin_1() -> None:
    said = read_headers([(b"helicone-user-id", b"J\xfcrgen"), (b"helicone-property-city", "Zürich".encode())], BOUNDS)
    assert said.user_id == "Jürgen"
    assert said.properties == {"city": "Zürich"}


def test_an_upgrade_counts_only_when_connection_says_so() -> None:
    assert read(("Connection", "Upgrade"), ("Upgrade", "websocket")).upgrade
    assert not read(("Upgrade", "websocket")).upgrade
