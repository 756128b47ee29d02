import http.server
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ingest.kafka_client import TokenProvider, admin, connection, tls_context
from ingest.log import LogUnavailable
from schemas.settings import KafkaSaslSettings, KafkaSettings, KafkaTlsSettings, SettingsError
from schemas.settings import SharedSettings as Shared
from schemas.variables import load


def settings(**changes: Any) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers="a:1,b:2", **changes)


def test_every_broker_named_is_asked() -> None:
    assert connection(settings())["bootstrap_servers"] == ["a:1", "b:2"]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_name_and_password_are_passed_on(mechanism: Any) -> None:
    sasl = KafkaSaslSettings(mechanism=mechanism, username="u", password=SecretStr("p"))
    found = connection(settings(security_protocol="SASL_SSL", sasl=sasl))
    assert (found["sasl_mechanism"], found["sasl_plain_username"], found["sasl_plain_password"]) == (
        mechanism,
        "u",
        "p",
    )
    assert isinstance(found["ssl_context"], ssl.SSLContext)


def test_kerberos_settings_are_passed_on() -> None:
    sasl = KafkaSaslSettings(mechanism="GSSAPI", kerberos_service_name="k", kerberos_domain_name="d")
    found = connection(settings(security_protocol="SASL_PLAINTEXT", sasl=sasl))
    assert (found["sasl_kerberos_service_name"], found["sasl_kerberos_domain_name"]) == ("k", "d")


@pytest.mark.parametrize("mechanism", ["PLAIN", "OAUTHBEARER"])
def test_what_a_mechanism_needs_and_has_not_is_named(mechanism: Any) -> None:
    with pytest.raises(SettingsError, match="HELIOGRAPH_KAFKA__SASL__"):
        connection(settings(security_protocol="SASL_SSL", sasl=KafkaSaslSettings(mechanism=mechanism)))


def test_a_password_stands_in_no_repr() -> None:
    sasl = KafkaSaslSettings(username="u", password=SecretStr("hidden"), oauth_client_secret=SecretStr("hidden"))
    assert "hidden" not in repr(settings(sasl=sasl))


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="CA_FILE"):
        tls_context(KafkaTlsSettings(ca_file=tmp_path / "none.pem"))
    with pytest.raises(SettingsError, match="CERT_FILE"):
        tls_context(KafkaTlsSettings(cert_file=tmp_path / "none.pem"))
    assert not tls_context(KafkaTlsSettings(check_hostname=False)).check_hostname


async def test_a_token_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    provider = TokenProvider(KafkaSaslSettings(mechanism="OAUTHBEARER", oauth_token_file=file))
    for token in ("one", "two"):
        file.write_text(token + "\n")
        assert await provider.token() == token


async def test_a_token_is_asked_for_with_id_and_secret() -> None:
    class Tokens(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["content-length"])).decode()
            right = form == "grant_type=client_credentials&client_id=id&client_secret=s%26&scope=kafka"
            answer = b'{"access_token": "t0ken"}' if right else b"s& is wrong"
            self.send_response(200 if right else 401)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Tokens)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asked = KafkaSaslSettings(
        mechanism="OAUTHBEARER",
        oauth_token_url=f"http://127.0.0.1:{server.server_port}/token",
        oauth_client_id="id",
        oauth_client_secret=SecretStr("s&"),
        oauth_scope="kafka",
    )
    try:
        assert await TokenProvider(asked).token() == "t0ken"
        with pytest.raises(OSError, match="no token from") as raised:
            await TokenProvider(asked.model_copy(update={"oauth_scope": None})).token()
        assert "s&" not in str(raised.value)
    finally:
        server.shutdown()
        server.server_close()


async def test_a_wrong_password_is_told_and_not_shown(kafka: KafkaSettings) -> None:
    wrong = kafka.sasl.model_copy(update={"password": SecretStr("not the right one")})
    with pytest.raises(LogUnavailable) as raised:
        async with admin(kafka.model_copy(update={"sasl": wrong})):
            pass
    assert "not the right one" not in str(raised.value)


def test_every_setting_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS", "k1:9092,k2:9092")
    monkeypatch.setenv("HELIOGRAPH_KAFKA__SASL__PASSWORD", "p")
    monkeypatch.setenv("HELIOGRAPH_KAFKA__TLS__CHECK_HOSTNAME", "false")
    monkeypatch.setenv("HELIOGRAPH_OBJECTS__OPTIONS__AWS_REGION", "eu-west-1")
    shared = load(Shared)
    assert shared.kafka.bootstrap_servers == "k1:9092,k2:9092"
    assert not shared.kafka.tls.check_hostname
    assert shared.objects.options == {"aws_region": "eu-west-1"}
    monkeypatch.setenv("HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS", "k1:9092, k2:9092")
    with pytest.raises(SettingsError, match="BOOTSTRAP_SERVERS"):
        load(Shared)
