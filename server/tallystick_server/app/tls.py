"""TLS: the certificates of this process's servers, which are replaced while they run, and the CAs
that verify the servers that it calls.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from tallystick_server.app.configuration.errors import setting_name
from tallystick_server.app.configuration.network import ListenerSettings
from tallystick_server.app.errors import StartupError
from tallystick_server.observability import names
from tallystick_server.operations.periodic import Periodic
from tallystick_server.rpc.service_client import open_channel

log = logging.getLogger(__name__)

POLL_INTERVAL_SECONDS = 10.0
_REPORTED_FAILURE_COUNT = 2
"""Consecutive failures until one is logged: the two files may be replaced one after the other."""
_MAX_FILE_BYTES = 1024 * 1024
_MIN_RSA_BITS = 2048
_CURVES = (ec.SECP256R1, ec.SECP384R1)  # gRPC's clients accept no other
_CIPHERS_OF_TLS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with those of its intermediate CAs, and its private key, in PEM."""

    certificates: bytes
    key: bytes = field(repr=False)


def read_key_pair(section: str, settings: ListenerSettings, now: datetime) -> KeyPair:
    """Reads the certificate and key of a server. `section`: the path of its settings, such as
    "server". Raises StartupError, which names the setting, for a pair that cannot be used.
    """
    certificate_name = setting_name((section, "certificate_file"))
    key_name = setting_name((section, "key_file"))
    pair = KeyPair(
        _read(certificate_name, settings.certificate_file), _read(key_name, settings.key_file)
    )
    certificate, certificate_key = _parse_certificate(certificate_name, pair.certificates)
    if _parse_key(key_name, pair.key) != certificate_key:
        raise StartupError(
            f"{key_name} must be the key of the first certificate in {section}.certificate_file."
        )
    _check_validity(certificate_name, certificate, now)
    return pair


def _read(name: str, path: str) -> bytes:
    """The content of a file. No error shows the path, which may be a key in the wrong place."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StartupError(f"{name} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise StartupError(f"{name} must be a path.") from None
    if len(content) > _MAX_FILE_BYTES:
        raise StartupError(f"{name} must be a file of at most {_MAX_FILE_BYTES:,} bytes.")
    return content


def _parse_certificate(name: str, content: bytes) -> tuple[x509.Certificate, bytes]:
    """The first certificate, and its public key in DER."""
    try:
        certificate = x509.load_pem_x509_certificates(content)[0]
        public_key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise StartupError(f"{name} must have certificates in PEM.") from None
    if not (
        (isinstance(public_key, rsa.RSAPublicKey) and public_key.key_size >= _MIN_RSA_BITS)
        or (
            isinstance(public_key, ec.EllipticCurvePublicKey)
            and isinstance(public_key.curve, _CURVES)
        )
    ):
        raise StartupError(
            f"{name} must have an RSA key of at least {_MIN_RSA_BITS} bits, or a key on the curve "
            "P-256 or P-384."
        )
    return certificate, public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _parse_key(name: str, content: bytes) -> bytes:
    """The public key of a private key, in DER. No error shows a part of the file."""
    try:
        public_key = load_pem_private_key(content, password=None).public_key()
    except TypeError:  # a password is needed
        raise StartupError(f"{name} must not be encrypted.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise StartupError(f"{name} must have a private key in PEM.") from None
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_validity(name: str, certificate: x509.Certificate, now: datetime) -> None:
    start_time, end_time = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start_time:
        raise StartupError(f"{name} is not valid before {start_time:%Y-%m-%dT%H:%M:%SZ}.")
    if now > end_time:
        raise StartupError(f"{name} has expired: it was valid until {end_time:%Y-%m-%dT%H:%M:%SZ}.")


class ServerCertificate:
    """The certificate and key of one server. Its files are polled: connections that begin after a
    change get the new pair, and open ones stay.

    A pair that cannot be used is logged, and the previous one stays in use. Raises StartupError if
    the first one cannot be used.
    """

    def __init__(
        self,
        section: str,
        settings: ListenerSettings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._section = section
        self._settings = settings
        self._now = now
        self._pair = read_key_pair(section, settings, now())
        self._context: ssl.SSLContext | None = None
        """Of new HTTP connections, if there is an HTTP server."""
        self._last_error, self._failure_count = "", 0
        self._poll_task = Periodic(
            f"{section}.poll_certificate",
            POLL_INTERVAL_SECONDS,
            partial(asyncio.to_thread, self.refresh),
        )

    def start(self) -> None:
        """Begins to poll the files."""
        self._poll_task.start()

    async def stop(self) -> None:
        await self._poll_task.stop()

    def refresh(self) -> None:
        """Reads the files, and uses them from now on if they have changed and can be used."""
        try:
            pair = read_key_pair(self._section, self._settings, self._now())
            if pair != self._pair and self._context is not None:
                self._context = self._create_context()
        except StartupError as error:
            self._report(str(error))
            return
        self._pair = pair
        self._last_error, self._failure_count = "", 0

    def _report(self, error: str) -> None:
        """Logs an error once, when it has lasted."""
        self._failure_count = self._failure_count + 1 if error == self._last_error else 1
        self._last_error = error
        if self._failure_count == _REPORTED_FAILURE_COUNT:
            log.error(
                "%s The certificate and key that were loaded before stay in use.",
                error,
                extra=names.CERTIFICATE_REJECTED.extra,
            )

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """The credentials of a gRPC server: TLS 1.2 or newer."""
        first_pair = latest_pair = self._pair

        def fetch_changed() -> grpc.ServerCertificateConfiguration | None:
            # gRPC asks at each new connection
            nonlocal latest_pair
            if self._pair is latest_pair:
                return None
            latest_pair = self._pair
            return _grpc_configuration(latest_pair)

        return grpc.dynamic_ssl_server_credentials(
            _grpc_configuration(first_pair),
            fetch_changed,  # type: ignore[arg-type]  # None: no change
        )

    def ssl_context(self) -> ssl.SSLContext:
        """The context of an HTTP server: TLS 1.2 or newer, HTTP/1.1."""
        first_context = self._context = self._create_context()

        def choose_context(connection: ssl.SSLObject, _name: str | None, _: object) -> None:
            # OpenSSL asks at each new connection, also without a server name
            if self._context is not None:
                connection.context = self._context

        first_context.sni_callback = choose_context
        return first_context

    def _create_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_CIPHERS_OF_TLS_1_2)
        context.set_alpn_protocols(["http/1.1"])
        try:
            # a password, so that OpenSSL never asks for one
            context.load_cert_chain(
                self._settings.certificate_file, self._settings.key_file, password=""
            )
        except OSError:
            name = setting_name((self._section, "certificate_file"))
            raise StartupError(f"{name} changed while it was read.") from None
        return context


def _grpc_configuration(pair: KeyPair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificates)])


def load_certificate(section: str, settings: ListenerSettings) -> ServerCertificate | None:
    """The certificate of a server; None: it has none. Raises StartupError for one that cannot be
    used.
    """
    return ServerCertificate(section, settings) if settings.certificate_file else None


def service_credentials(ca_file: str) -> grpc.ChannelCredentials:
    """The credentials for servers at https:// addresses. `ca_file`: the setting `service_ca_file`.
    Raises StartupError.
    """
    if not ca_file:
        return grpc.ssl_channel_credentials()
    name = setting_name(("service_ca_file",))
    content = _read(name, ca_file)
    try:
        x509.load_pem_x509_certificates(content)
    except ValueError:
        raise StartupError(f"{name} must have certificates in PEM.") from None
    return grpc.ssl_channel_credentials(content)


def service_connector(ca_file: str) -> Callable[[str], grpc.aio.Channel]:
    """How this process connects to a service at an address. `ca_file`: as above. Raises
    StartupError.
    """
    return partial(open_channel, credentials=service_credentials(ca_file))
