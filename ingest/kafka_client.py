"""What every connection to Kafka shares: how brokers are reached, how one signs in, how long one waits."""

import asyncio
import json
import logging
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.abc import AbstractTokenProvider
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from ingest.log import LogError, LogUnavailable
from schemas.settings import KafkaSaslSettings, KafkaSettings, KafkaTlsSettings, SettingsError

_CLOSE_S = 2.0

# What its lines say is raised to us as well. Without a handler Python would print them in commands that set up no log.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())


def connection(settings: KafkaSettings) -> dict[str, Any]:
    """What producers, consumers and admin clients of aiokafka take alike. Call it within a running loop.

    Raises:
        SettingsError: a certificate cannot be read, or what the mechanism needs is not set.
    """
    assert settings.bootstrap_servers is not None
    shared: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "client_id": settings.client_id,
        "request_timeout_ms": int(settings.request_timeout_s * 1000),
        "retry_backoff_ms": settings.retry_backoff_ms,
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        shared["ssl_context"] = tls_context(settings.tls)
    if settings.security_protocol.startswith("SASL"):
        shared |= _sasl(settings.sasl)
    return shared


@asynccontextmanager
async def unavailable_as_ours(what: str, timeout_s: float) -> AsyncIterator[None]:
    """Bound a call in time and make its failure ours.

    Raises:
        LogUnavailable: it failed, or time was over.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise LogUnavailable(f"Kafka did not answer within {timeout_s:g} s: {what}") from error
    except (KafkaError, OSError) as error:
        raise LogUnavailable(f"Kafka: {what}: {told(error)}") from error


def told(error: BaseException) -> str:
    """An error in a few words; a client's own text may be empty or a page long."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, LogError):
        return text
    name = type(error).__name__
    return text if name in text or not name else f"{name}: {text}" if text else name


async def close(*steps: Callable[[], Awaitable[None]]) -> None:
    """Let go of a client whatever state it is in, in at most `_CLOSE_S` for each step.

    Some of its `stop`s wait for brokers that are away, and some raise the cancellation of their own tasks.
    """
    task = asyncio.current_task()
    assert task is not None
    for step in steps:
        try:
            async with asyncio.timeout(_CLOSE_S):
                await step()
        except (TimeoutError, KafkaError, OSError):
            continue
        except asyncio.CancelledError:
            if task.cancelling():  # it was us who were told to end
                raise


@asynccontextmanager
async def admin(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected admin client.

    Raises:
        LogUnavailable: no broker answers.
    """
    client = AIOKafkaAdminClient(**connection(settings))
    try:
        async with unavailable_as_ours("connecting", settings.call_timeout_s):
            await client.start()
        yield client
    finally:
        await close(client.close)


def tls_context(settings: KafkaTlsSettings) -> ssl.SSLContext:
    """
    Raises:
        SettingsError: names the file that cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"HELIOGRAPH_KAFKA__TLS__CA_FILE = {str(settings.ca_file)!r}: {error}") from error
    context.check_hostname = settings.check_hostname
    if settings.cert_file is not None:
        password = None if settings.key_password is None else settings.key_password.get_secret_value()
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file, password)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"HELIOGRAPH_KAFKA__TLS__CERT_FILE = {str(settings.cert_file)!r} with its key: {error}"
            ) from error
    return context


def _sasl(settings: KafkaSaslSettings) -> dict[str, Any]:
    shared: dict[str, Any] = {"sasl_mechanism": settings.mechanism}
    match settings.mechanism:
        case "GSSAPI":
            shared["sasl_kerberos_service_name"] = settings.kerberos_service_name
            shared["sasl_kerberos_domain_name"] = settings.kerberos_domain_name
        case "OAUTHBEARER":
            shared["sasl_oauth_token_provider"] = TokenProvider(settings)
        case _:
            if settings.username is None or settings.password is None:
                raise SettingsError(
                    f"HELIOGRAPH_KAFKA__SASL__USERNAME and __PASSWORD: both are needed to sign in by {settings.mechanism}"
                )
            shared["sasl_plain_username"] = settings.username
            shared["sasl_plain_password"] = settings.password.get_secret_value()
    return shared


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """OAUTHBEARER: the token out of a file that somebody renews, or asked for with client id and secret."""

    def __init__(self, settings: KafkaSaslSettings) -> None:
        if settings.oauth_token_file is None and None in (
            settings.oauth_token_url,
            settings.oauth_client_id,
            settings.oauth_client_secret,
        ):
            raise SettingsError(
                "HELIOGRAPH_KAFKA__SASL__OAUTH_TOKEN_FILE, or __OAUTH_TOKEN_URL with __OAUTH_CLIENT_ID and "
                "__OAUTH_CLIENT_SECRET: needed to sign in by OAUTHBEARER"
            )
        self._settings = settings

    async def token(self) -> str:
        """Asked for each connection, so a renewed one is taken by the next.

        Raises:
            OSError: it cannot be had.
        """
        if self._settings.oauth_token_file is not None:
            return (await asyncio.to_thread(self._settings.oauth_token_file.read_text)).strip()
        return await asyncio.to_thread(self._ask)

    def _ask(self) -> str:
        settings = self._settings
        assert settings.oauth_token_url is not None
        assert settings.oauth_client_secret is not None
        form = {
            "grant_type": "client_credentials",
            "client_id": settings.oauth_client_id or "",
            "client_secret": settings.oauth_client_secret.get_secret_value(),
            **({"scope": settings.oauth_scope} if settings.oauth_scope else {}),
        }
        asked = urllib.request.Request(  # noqa: S310 - http or https, checked by the setting
            settings.oauth_token_url, data=urllib.parse.urlencode(form).encode(), method="POST"
        )
        try:
            with urllib.request.urlopen(asked, timeout=settings.oauth_timeout_s) as answer:  # noqa: S310
                token = json.loads(answer.read())["access_token"]
        except (urllib.error.URLError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            # Never its text: some servers repeat what they were sent.
            raise OSError(f"no token from {settings.oauth_token_url}: {type(error).__name__}") from None
        return str(token)
