"""The server's connections, and its health and reflection services."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tallystick_server.app import grpc_servers
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import SERVICES
from tests.support.errors import from_rpc
from tests.support.health import is_serving
from tests.support.platform import serve_platform as platform_of

_PING, _GOAWAY = 6, 7  # types of HTTP/2 frames


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_malformed_health_and_reflection_requests_have_a_reason(
    platform_address: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """X1: malformed bytes to health and reflection are MESSAGE_MALFORMED, never UNKNOWN with an
    exception's text, and nothing is logged as failed.
    """
    with grpc.insecure_channel(platform_address) as channel, pytest.raises(grpc.RpcError) as error:
        stub: Any = channel.stream_stream(method, None, None)
        list(stub(iter([b"\xff\xff\xff"]), timeout=10))
    api_error = from_rpc(error.value)
    assert (error.value.code(), api_error.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "MESSAGE_MALFORMED",
    )
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_reflection_lists_every_service(platform_address: str) -> None:
    """With reflection, as grpcurl uses it, the server lists its services and their files."""
    with grpc.insecure_channel(platform_address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        responses = list(
            stub.ServerReflectionInfo(  # type: ignore[operator]
                iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            )
        )
    names = {service.name for service in responses[0].list_services_response.service}
    assert names >= {spec.descriptor.full_name for spec in SERVICES}
    for name in names:
        assert is_serving(platform_address, name) or not name.startswith("tallystick.")


def test_a_connection_that_pings_too_often_is_closed(platform_address: str) -> None:
    """A client that sends pings without end gets too_many_pings and loses its connection; the SDK's
    pings, every 10 s, are accepted.
    """
    host, _, port = platform_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        received_bytes = b""
        with suppress(OSError):  # the connection is closed while we send
            for _ in range(1000):
                connection.sendall(b"\0\0\x08\6\0\0\0\0\0" + bytes(8))
        with suppress(ConnectionError):
            while received := connection.recv(65536):
                received_bytes += received
    assert b"too_many_pings" in received_bytes


@pytest.mark.parametrize(
    ("option", "frame"),
    [("grpc.max_connection_age_ms", _GOAWAY), ("grpc.keepalive_time_ms", _PING)],
)
def test_old_and_dead_connections_are_closed(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch, option: str, frame: int
) -> None:
    """An old connection is ended by GOAWAY, so that its caller finds other processes; a connection
    whose caller answers no ping is closed.
    """
    soon = {option, "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"}
    monkeypatch.setattr(
        grpc_servers,
        "CONNECTIONS",
        [(name, 500 if name in soon else value) for name, value in grpc_servers.CONNECTIONS],
    )
    with platform_of(scratch_database, names=("event",)) as platform:
        host, _, port = platform.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=20) as connection,
            connection.makefile("rb") as stream_reader,
        ):
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            while head := stream_reader.read(9):
                stream_reader.read(int.from_bytes(head[:3]))
                if head[3] == frame:
                    break
            assert head
            while stream_reader.read(1000):
                pass


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("tallystick.payment.v1.PaymentService", "tallystick/payment/v1/payment_service.proto"),
        (
            "tallystick.payment.v1.PaymentService.CreatePayment",
            "tallystick/payment/v1/payment_service.proto",
        ),
        (
            "tallystick.payment.v1.CreatePaymentRequest.checkout_id",
            "tallystick/payment/v1/payment_service.proto",
        ),
        (
            "tallystick.payment.v1.CreatePaymentRequest.payment_method",
            "tallystick/payment/v1/payment_service.proto",
        ),
        ("google.rpc.Status", "google/rpc/status.proto"),
        ("tallystick.payment.v1.PaymentService.Nothing", ""),
        ("nothing", ""),
        ("", ""),
    ],
)
def test_reflection_finds_every_symbol(platform_address: str, symbol: str, file: str) -> None:
    """The file of a service, a method, a field or a oneof is found by its full name, as grpcurl and
    ghz request it; an unknown name is NOT_FOUND.
    """
    with grpc.insecure_channel(platform_address) as channel:
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
    if not file:
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        return
    assert (
        FileDescriptorProto.FromString(
            answer.file_descriptor_response.file_descriptor_proto[0]
        ).name
        == file
    )


@pytest.fixture
def platform_address(platform: object) -> str:
    return platform.address  # type: ignore[attr-defined, no-any-return]
