"""TLS of a served platform: its clients, its services, and a certificate that is renewed."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tallystick import AsyncClient, Client, ClientSettings, UnavailableError, new_order
from tallystick.event.v1 import event_service_pb2
from tallystick_server.app import tls
from tallystick_server.app.configuration import Settings, load
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.errors import StartupError
from tests.support.platform import (
    ServedPlatform,
    eventually,
    free_address,
    run_command,
    unique_id,
)
from tests.support.platform import serve_platform as platform_of
from tests.support.processes import CLI, UNREACHABLE_URL, expect_startup_error
from tests.support.tls import ServerFiles, served_serial, server_files, tls_connection


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ServerFiles:
    return server_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls_platform(database: DatabaseUrls, files: ServerFiles) -> Iterator[ServedPlatform]:
    """A platform with TLS, which polls its files often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls, "POLL_INTERVAL_SECONDS", 0.02)
        with platform_of(database, with_certificate(Settings(), files)) as platform:
            yield platform


def with_certificate(settings: Settings, files: ServerFiles) -> Settings:
    return settings.replace(
        server__certificate_file=files.certificate_file, server__key_file=files.key_file
    )


def client_of(platform: ServedPlatform, files: ServerFiles) -> Client:
    settings = ClientSettings(ca_file=files.ca_file, tries=1)
    return Client(f"https://{platform.address}", settings=settings)


def pay(client: Client) -> bool:
    order = new_order(unique_id("o"), "buyer", unique_id("s"), "1.00", "EUR")
    payment = client.create_payment(unique_id("c"), [order], credit_card_info="tok_visa")
    return payment.is_payment_done


def test_clients_call_by_tls(tls_platform: ServedPlatform, files: ServerFiles) -> None:
    """Both clients reach https:// targets with the CA of a file."""
    with client_of(tls_platform, files) as client:
        assert pay(client)

    async def pay_async() -> bool:
        settings = ClientSettings(ca_file=files.ca_file, tries=1)
        order = new_order(unique_id("o"), "buyer", unique_id("s"), "1.00", "EUR")
        async with AsyncClient(f"https://{tls_platform.address}", settings=settings) as client:
            payment = await client.create_payment(
                unique_id("c"), [order], credit_card_info="tok_visa"
            )
        return payment.is_payment_done

    assert asyncio.run(pay_async())


def test_another_ca_is_rejected(
    tls_platform: ServedPlatform, files: ServerFiles, tmp_path: Path
) -> None:
    """A client sends nothing to a server whose certificate its CA has not signed, or that has
    another name.
    """
    others = server_files(tmp_path)
    with client_of(tls_platform, others) as client, pytest.raises(UnavailableError) as error:
        client.get_payment("c-1")
    assert "CERTIFICATE_VERIFY_FAILED" in error.value.message
    serial = files.write(files.ca.issue_cert("other.example"))
    assert eventually(lambda: served_serial(tls_platform.address) == serial)
    with (
        client_of(tls_platform, files) as client,
        pytest.raises(UnavailableError, match="Hostname Verification Check failed"),
    ):
        client.get_payment("c-1")
    serial = files.renew()
    assert eventually(lambda: served_serial(tls_platform.address) == serial)


def test_plain_text_is_not_answered(tls_platform: ServedPlatform) -> None:
    """A server with TLS has no plain text on the same port."""
    settings = ClientSettings(tries=1)
    with (
        Client(tls_platform.address, settings=settings) as client,
        pytest.raises(UnavailableError),
    ):
        client.get_payment("c-1")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_are_rejected(tls_platform: ServedPlatform) -> None:
    """gRPC accepts TLS 1.2 and 1.3, and not TLS 1.1."""
    with (
        pytest.raises(ssl.SSLError),
        tls_connection(tls_platform.address, max_version=ssl.TLSVersion.TLSv1_1),
    ):
        pass
    for version, name in (
        (ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
        (ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
    ):
        with tls_connection(tls_platform.address, max_version=version) as connection:
            assert connection.version() == name


def test_a_renewed_certificate_is_used_without_a_restart(
    tls_platform: ServedPlatform, files: ServerFiles
) -> None:
    """New connections get the renewed certificate. A stream that was open before stays open: it
    delivers an event that is published afterwards.
    """
    with client_of(tls_platform, files) as client:
        assert pay(client)
        request = event_service_pb2.StreamEventsRequest(follow=True)
        stream = client.event.StreamEvents(request, timeout=60)
        last_cursor = next(stream).event.cursor
        serial = files.renew()
        assert eventually(lambda: served_serial(tls_platform.address) == serial)
        with client_of(tls_platform, files) as new_client:
            assert pay(new_client)
            payment_events = list(new_client.events(after_cursor=last_cursor))
        for response in stream:
            if response.event.cursor == payment_events[-1].cursor:
                break
        else:
            raise AssertionError("the stream ended before the event")


def test_a_pair_that_cannot_be_used_is_rejected_while_serving(
    tls_platform: ServedPlatform, files: ServerFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """The previous certificate stays in use and the reason is logged; a right pair is then used."""
    serial = files.renew()
    assert eventually(lambda: served_serial(tls_platform.address) == serial)
    files.ca.issue_cert("127.0.0.1").private_key_pem.write_to_path(files.key_file)
    assert eventually(lambda: rejections(caplog))
    assert served_serial(tls_platform.address) == serial
    with client_of(tls_platform, files) as client:
        assert pay(client)
    next_serial = files.renew()
    assert eventually(lambda: served_serial(tls_platform.address) == next_serial)
    assert len(rejections(caplog)) == 1


def rejections(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [
        record
        for record in caplog.records
        if record.__dict__.get("event_name") == "tls.certificate.rejected"
    ]


def test_services_call_each_other_by_tls(
    scratch_database: DatabaseUrls, files: ServerFiles, tmp_path: Path
) -> None:
    """PaymentService pays with the other services at https:// addresses. With another CA it cannot
    reach them, and says so.
    """
    others = ("wallet", "ledger", "event")
    with platform_of(scratch_database, with_certificate(Settings(), files), others) as platform:
        addresses = dict.fromkeys(others, f"https://{platform.address}")
        settings = Settings().replace(service_addresses=addresses, service_ca_file=files.ca_file)
        with (
            platform_of(scratch_database, settings, ("payment",)) as payment_platform,
            payment_platform.client() as client,
        ):
            assert pay(client)
        settings = settings.replace(service_ca_file=server_files(tmp_path).ca_file)
        with (
            platform_of(scratch_database, settings, ("payment",)) as payment_platform,
            payment_platform.client(tries=1) as client,
            pytest.raises(UnavailableError) as error,
        ):
            pay(client)
    assert error.value.reason == "DEPENDENCY_UNAVAILABLE"


def test_operator_commands_call_by_tls(
    tls_platform: ServedPlatform, files: ServerFiles, tmp_path: Path
) -> None:
    """At an https:// address, and by default at the address of a server that has a certificate,
    commands verify it with `service_ca_file`.
    """
    trusted = {"TALLYSTICK_SERVICE_CA_FILE": files.ca_file}
    given = ("alerts", "--address", f"https://{tls_platform.address}")
    completed = run_command(*given, **trusted)
    assert completed.returncode == 0, completed.stderr
    default = {
        "TALLYSTICK_SERVER__LISTEN": tls_platform.address,
        "TALLYSTICK_SERVER__CERTIFICATE_FILE": files.certificate_file,
        "TALLYSTICK_SERVER__KEY_FILE": files.key_file,
    }
    completed = run_command("alerts", **default, **trusted)
    assert completed.returncode == 0, completed.stderr
    completed = run_command(*given, TALLYSTICK_SERVICE_CA_FILE=server_files(tmp_path).ca_file)
    assert completed.returncode == 1
    assert f"Cannot reach the platform at https://{tls_platform.address}" in completed.stderr
    assert "CERTIFICATE_VERIFY_FAILED" in completed.stderr
    completed = run_command("alerts", "--address", f"http://{tls_platform.address}")
    assert "--address must be HOST:PORT, or https://HOST:PORT for TLS." in completed.stderr


def test_a_process_that_waits_for_its_database_has_tls(files: ServerFiles, tmp_path: Path) -> None:
    """Its health is NOT_SERVING, and is answered by TLS."""
    address = free_address()
    environment = {
        **os.environ,
        "TALLYSTICK_DATABASE__SERVICE_URLS": f"event={UNREACHABLE_URL}",
        "TALLYSTICK_DATA_DIR": str(tmp_path),
        "TALLYSTICK_SERVER__LISTEN": address,
        "TALLYSTICK_SERVER__CERTIFICATE_FILE": files.certificate_file,
        "TALLYSTICK_SERVER__KEY_FILE": files.key_file,
    }
    process = subprocess.Popen(
        [*CLI, "serve", "event"], env=environment, stderr=subprocess.DEVNULL, text=True
    )
    try:
        with grpc.secure_channel(address, tls.service_credentials(files.ca_file)) as channel:
            response = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), timeout=30, wait_for_ready=True
            )
        assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING
    finally:
        process.terminate()
        process.wait(60)


def test_serve_does_not_start_without_its_certificate(tmp_path: Path) -> None:
    """The error is one sentence that names the setting."""
    path = tmp_path / "server.pem"
    sentence = expect_startup_error(
        ["serve", "event"],
        {
            "TALLYSTICK_DATABASE__SERVICE_URLS": f"event={UNREACHABLE_URL}",
            "TALLYSTICK_DATA_DIR": str(tmp_path),
            "TALLYSTICK_SERVER__LISTEN": free_address(),
            "TALLYSTICK_SERVER__CERTIFICATE_FILE": str(path),
            "TALLYSTICK_SERVER__KEY_FILE": str(path),
        },
    )
    assert sentence == (
        "tallystick: server.certificate_file (TALLYSTICK_SERVER__CERTIFICATE_FILE) cannot be "
        "read: No such file or directory."
    )


TOKEN = "0123456789abcdef"
WITH_TOKENS = {
    "TALLYSTICK_AUTHENTICATION": "tokens",
    "TALLYSTICK_CALLERS": f"a:service:{TOKEN}",
    "TALLYSTICK_SERVICE_TOKEN": TOKEN,
}


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:7070", "[::]:7070", "10.0.0.1:7070", "localhost.example.com:7070", "[fe80::1]:7070"],
)
@pytest.mark.parametrize("section", ["server", "http"])
def test_plain_text_outside_loopback_is_rejected(section: str, address: str) -> None:
    """Also with authentication; the error says which settings allow the address. A certificate or
    a proxy that terminates TLS does.
    """
    variable = f"TALLYSTICK_{section.upper()}"
    environment = {**WITH_TOKENS, f"{variable}__LISTEN": address}
    with pytest.raises(StartupError) as error:
        load(environment)
    assert str(error.value) == (
        f"{variable}__LISTEN must be a loopback address while it is plain text. Set "
        f"{section}.certificate_file and {section}.key_file for TLS, or "
        f"{section}.tls_terminated_by_proxy = true if a proxy terminates TLS in front of it."
    )
    certificate = {f"{variable}__CERTIFICATE_FILE": "c.pem", f"{variable}__KEY_FILE": "c.key"}
    proxy = {f"{variable}__TLS_TERMINATED_BY_PROXY": "true"}
    for allowing in (certificate, proxy):
        assert getattr(load({**environment, **allowing}), section).listen == address
    with pytest.raises(StartupError, match="must be a loopback address while authentication is"):
        load({f"{variable}__LISTEN": address, **certificate})


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:7070", "127.8.9.10:7070", "localhost:7070", "[::1]:7070", "unix:/run/tallystick"],
)
def test_plain_text_on_loopback_is_allowed(address: str) -> None:
    """Addresses that only this machine reaches need neither TLS nor authentication."""
    settings = load(
        {
            "TALLYSTICK_SERVER__LISTEN": address,
            "TALLYSTICK_SERVICE_ADDRESSES": f"wallet={address}",
        }
    )
    assert settings.server.listen == settings.service_addresses["wallet"] == address


def test_plain_text_elsewhere_is_allowed_by_its_own_setting() -> None:
    """Calls to other services by https:// or through a proxy, and a listener of metrics that other
    machines may reach.
    """
    for environment in (
        {"TALLYSTICK_SERVICE_ADDRESSES": "wallet=https://wallet.internal:7072"},
        {
            "TALLYSTICK_SERVICE_ADDRESSES": "wallet=wallet.internal:7072",
            "TALLYSTICK_SERVICE_TLS_ORIGINATED_BY_PROXY": "true",
        },
        {"TALLYSTICK_METRICS__LISTEN": "0.0.0.0:9464", "TALLYSTICK_METRICS__ALLOW_REMOTE": "true"},
    ):
        load(environment)
