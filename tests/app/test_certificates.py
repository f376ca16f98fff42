"""The certificate of a server: which pairs are rejected, and how a changed pair is loaded."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tallystick_server.app import tls
from tallystick_server.app.configuration import Settings
from tallystick_server.app.errors import StartupError
from tallystick_server.app.tls import (
    ServerCertificate,
    load_certificate,
    read_key_pair,
    service_credentials,
)
from tests.support.platform import free_address
from tests.support.tls import ServerFiles, serial_of, served_serial, server_files, tls_connection

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
DAY = timedelta(days=1)
CERTIFICATE = "server.certificate_file (TALLYSTICK_SERVER__CERTIFICATE_FILE)"
KEY = "server.key_file (TALLYSTICK_SERVER__KEY_FILE)"
WEAK = "must have an RSA key of at least 2048 bits, or a key on the curve P-256 or P-384."


@pytest.fixture
def files(tmp_path: Path) -> ServerFiles:
    return server_files(tmp_path)


def _self_signed(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
) -> Callable[[ServerFiles], object]:
    """Writes a certificate with this key."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    hash_algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()

    def write(files: ServerFiles) -> None:
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(NOW - DAY)
            .not_valid_after(NOW + DAY)
            .sign(key, hash_algorithm)
        )
        Path(files.certificate_file).write_bytes(certificate.public_bytes(Encoding.PEM))
        Path(files.key_file).write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )

    return write


def _encrypt_key(files: ServerFiles) -> None:
    key = load_pem_private_key(Path(files.key_file).read_bytes(), None)
    encryption = BestAvailableEncryption(b"secret")
    Path(files.key_file).write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    )


def _replace_key(files: ServerFiles) -> None:
    files.ca.issue_cert("127.0.0.1").private_key_pem.write_to_path(files.key_file)


def _make_folder(files: ServerFiles) -> None:
    Path(files.key_file).unlink()
    Path(files.key_file).mkdir()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda files: Path(files.certificate_file).unlink(),
            CERTIFICATE + " cannot be read: No such file or directory.",
        ),
        (
            lambda files: Path(files.key_file).unlink(),
            KEY + " cannot be read: No such file or directory.",
        ),
        (_make_folder, KEY + " cannot be read: Is a directory."),
        (
            lambda files: Path(files.certificate_file).write_bytes(b"x" * (1024 * 1024 + 1)),
            CERTIFICATE + " must be a file of at most 1,048,576 bytes.",
        ),
        (
            lambda files: Path(files.certificate_file).write_text("nothing"),
            CERTIFICATE + " must have certificates in PEM.",
        ),
        (
            lambda files: Path(files.key_file).write_text("secret"),
            KEY + " must have a private key in PEM.",
        ),
        (_encrypt_key, KEY + " must not be encrypted."),
        (
            _replace_key,
            KEY + " must be the key of the first certificate in server.certificate_file.",
        ),
        (
            lambda files: files.write(
                files.ca.issue_cert("127.0.0.1", not_before=NOW - 2 * DAY, not_after=NOW - DAY)
            ),
            CERTIFICATE + " has expired: it was valid until 2026-11-29T12:00:00Z.",
        ),
        (
            lambda files: files.write(
                files.ca.issue_cert("127.0.0.1", not_before=NOW + DAY, not_after=NOW + 2 * DAY)
            ),
            CERTIFICATE + " is not valid before 2026-12-01T12:00:00Z.",
        ),
        (_self_signed(rsa.generate_private_key(65_537, 1024)), f"{CERTIFICATE} {WEAK}"),
        (_self_signed(ec.generate_private_key(ec.SECP521R1())), f"{CERTIFICATE} {WEAK}"),
        (_self_signed(ed25519.Ed25519PrivateKey.generate()), f"{CERTIFICATE} {WEAK}"),
    ],
)
def test_a_pair_that_cannot_be_used_is_rejected(
    files: ServerFiles, change: Callable[[ServerFiles], object], expected: str
) -> None:
    """The error names the setting and what is wrong with its file, and shows nothing of a key."""
    change(files)
    with pytest.raises(StartupError) as error:
        read_key_pair("server", files, NOW)
    assert str(error.value) == expected


@pytest.mark.parametrize("path", ["-----BEGIN PRIVATE KEY-----secret", "secret" * 1000, "secret\0"])
def test_a_key_in_place_of_its_path_is_not_shown(tmp_path: Path, path: str) -> None:
    """Neither the error nor the repr of the settings shows the value of `key_file`."""
    files = server_files(tmp_path)
    settings = Settings().replace(
        server__certificate_file=files.certificate_file, server__key_file=path
    )
    with pytest.raises(StartupError) as error:
        load_certificate("server", settings.server)
    assert str(error.value).startswith(KEY)
    assert "secret" not in f"{error.value} {settings!r}"


@pytest.mark.parametrize("key_type", trustme.KeyType)
def test_pairs_of_common_kinds_are_accepted(files: ServerFiles, key_type: trustme.KeyType) -> None:
    """RSA and elliptic curve certificates are read as they are in the files."""
    files.write(files.ca.issue_cert("127.0.0.1", key_type=key_type))
    pair = read_key_pair("server", files, NOW)
    assert pair.certificates == Path(files.certificate_file).read_bytes()
    assert pair.key == Path(files.key_file).read_bytes()
    assert "PRIVATE" not in repr(pair)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: No such file or directory."),
        ("nothing", "must have certificates in PEM."),
    ],
)
def test_a_ca_file_that_cannot_be_used_is_rejected(
    tmp_path: Path, content: str | None, expected: str
) -> None:
    """The error names the setting `service_ca_file`."""
    path = tmp_path / "own.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StartupError) as error:
        service_credentials(str(path))
    assert str(error.value) == (f"service_ca_file (TALLYSTICK_SERVICE_CA_FILE) {expected}")


def test_a_pair_is_reported_once_and_only_if_it_stays_wrong(
    files: ServerFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """The two files may be replaced one after the other, so the first poll between them logs
    nothing. An expired pair in use is reported too.
    """
    time = NOW
    files.write(files.ca.issue_cert("127.0.0.1", not_before=NOW - DAY, not_after=NOW + DAY))
    certificate = ServerCertificate("server", files, now=lambda: time)
    _replace_key(files)
    certificate.refresh()
    assert caplog.records == []
    files.write(files.ca.issue_cert("127.0.0.1", not_before=NOW - DAY, not_after=NOW + DAY))
    certificate.refresh()
    _replace_key(files)
    for _ in range(4):
        certificate.refresh()
    files.write(files.ca.issue_cert("127.0.0.1", not_before=NOW - DAY, not_after=NOW + DAY))
    time = NOW + 2 * DAY
    for _ in range(4):
        certificate.refresh()
    remains = "The certificate and key that were loaded before stay in use."
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.ERROR,
            f"{KEY} must be the key of the first certificate in server.certificate_file. {remains}",
        ),
        (
            logging.ERROR,
            f"{CERTIFICATE} has expired: it was valid until 2026-12-01T12:00:00Z. {remains}",
        ),
    ]
    assert {record.__dict__["event_name"] for record in caplog.records} == {
        "tls.certificate.rejected"
    }


async def _answer(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _serve_http(certificate: ServerCertificate, address: str) -> web.AppRunner:
    application = web.Application()
    application.router.add_get("/", _answer)
    runner = web.AppRunner(application)
    await runner.setup()
    host, _, port = address.rpartition(":")
    await web.TCPSite(runner, host, int(port), ssl_context=certificate.ssl_context()).start()
    return runner


def _get(connection: ssl.SSLSocket) -> bytes:
    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return connection.recv(4096)


def test_an_http_server_uses_a_changed_pair(files: ServerFiles) -> None:
    """New connections get the renewed certificate, open ones stay, and after a pair that cannot be
    used the previous one stays in use.
    """
    address = free_address()
    certificate = ServerCertificate("server", files)

    def check() -> None:
        with tls_connection(address, protocol="http/1.1") as connection:
            first_serial = serial_of(connection)
            assert connection.selected_alpn_protocol() == "http/1.1"
            assert _get(connection).endswith(b"ok")
            second_serial = files.renew()
            assert served_serial(address, "http/1.1") == first_serial
            certificate.refresh()
            assert served_serial(address, "http/1.1") == second_serial != first_serial
            assert _get(connection).endswith(b"ok")
        _replace_key(files)
        certificate.refresh()
        assert served_serial(address, "http/1.1") == second_serial
        third_serial = files.renew()
        certificate.refresh()
        assert served_serial(address, "http/1.1") == third_serial

    async def serve_and_check() -> None:
        runner = await _serve_http(certificate, address)
        try:
            await asyncio.to_thread(check)
        finally:
            await runner.cleanup()

    uvloop.run(serve_and_check())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_an_http_server_rejects_old_versions(files: ServerFiles) -> None:
    """TLS 1.2 and 1.3 are accepted, with ciphers of forward secrecy, and TLS 1.1 is not."""
    address = free_address()

    def check() -> None:
        with (
            pytest.raises(ssl.SSLError),
            tls_connection(address, max_version=ssl.TLSVersion.TLSv1_1, protocol="http/1.1"),
        ):
            pass
        with tls_connection(
            address, max_version=ssl.TLSVersion.TLSv1_2, protocol="http/1.1"
        ) as connection:
            cipher = connection.cipher()
            assert connection.version() == "TLSv1.2"
            assert cipher is not None
            assert cipher[0].startswith("ECDHE-")
        with tls_connection(address, protocol="http/1.1") as connection:
            assert connection.version() == "TLSv1.3"

    async def serve_and_check() -> None:
        runner = await _serve_http(ServerCertificate("server", files), address)
        try:
            await asyncio.to_thread(check)
        finally:
            await runner.cleanup()

    uvloop.run(serve_and_check())


def test_an_unexpected_error_does_not_end_the_poll(
    files: ServerFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the files are read again at the next interval."""
    monkeypatch.setattr(tls, "POLL_INTERVAL_SECONDS", 0.01)
    certificate = ServerCertificate("server", files)
    readings: list[str] = []

    async def poll() -> None:
        loop, read_again = asyncio.get_running_loop(), asyncio.Event()

        def read(section: str, *_: object) -> tls.KeyPair:
            readings.append(section)
            if len(readings) > 1:
                loop.call_soon_threadsafe(read_again.set)
            raise RuntimeError("unexpected")

        monkeypatch.setattr(tls, "read_key_pair", read)
        certificate.start()
        try:
            async with asyncio.timeout(10):
                await read_again.wait()
        finally:
            await certificate.stop()

    asyncio.run(poll())
    assert {record.getMessage() for record in caplog.records} == {
        "server.poll_certificate failed; it runs again at its next interval"
    }
