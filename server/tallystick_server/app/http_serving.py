"""The HTTP server of a process, and how it reaches the services: by gRPC, as any caller does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import grpc

from tallystick.monitoring.v1 import monitoring_service_pb2_grpc
from tallystick.payment.v1 import payment_service_pb2_grpc
from tallystick.payout.v1 import payout_service_pb2_grpc
from tallystick_core.monitoring.spans import ALLOWED_ATTRIBUTES
from tallystick_core.provider.webhook import WebhookSource, WebhookSubject
from tallystick_server.app.configuration import Settings
from tallystick_server.app.configuration.settings import HttpSection
from tallystick_server.app.errors import StartupError
from tallystick_server.app.listening import listen_http
from tallystick_server.app.metrics_export import MetricsExport, start_metrics_export
from tallystick_server.app.metrics_recording import MetricsRecorder
from tallystick_server.app.services import (
    HTTP_SERVER,
    SERVICES,
    check_addresses,
    essential_names,
    process_name,
    service_names,
)
from tallystick_server.app.settings_display import show_settings
from tallystick_server.app.span_recording import SpanRecorder, check_span_store, create_recorders
from tallystick_server.app.statement_upload import read_statement
from tallystick_server.app.tls import ServerCertificate, load_certificate, service_connector
from tallystick_server.http.console.calls import PublicCalls
from tallystick_server.http.console.pages.settings import SettingsPage
from tallystick_server.http.console.pages.statements import StatementUpload
from tallystick_server.http.console.pages.table import ACT_PAGES, FORM_PAGES, PAGES
from tallystick_server.http.console.session import Sessions
from tallystick_server.http.console.site import Console, ConsoleOptions
from tallystick_server.http.documentation import documentation_routes
from tallystick_server.http.health import health_route
from tallystick_server.http.http_rules import HttpRule, http_rules
from tallystick_server.http.routing import Route
from tallystick_server.http.server import HttpLimits, HttpServer
from tallystick_server.http.status_page.page import StatusPage
from tallystick_server.http.trace_receiver import trace_route
from tallystick_server.http.transcoder import transcoded_routes
from tallystick_server.http.webhook_catch_up import WebhookCatchUp
from tallystick_server.http.webhooks import ReceiveCall, WebhookEndpoints
from tallystick_server.operations.periodic import Periodic
from tallystick_server.providers.provider_type import CloseHook
from tallystick_server.providers.registry import build_providers
from tallystick_server.rpc.service_client import ServiceClient

HEALTH_NOTICE_SECONDS = 0.2
"""Seconds in which watchers of the health receive NOT_SERVING before calls are rejected."""


@dataclass
class RunningHttpServer:
    """The HTTP server of this process. `address`: where it is reachable."""

    address: str
    server: HttpServer
    _listener: asyncio.Server
    _certificate: ServerCertificate | None
    _close_hooks: Sequence[CloseHook]
    _stopping: asyncio.Event

    def announce_stop(self) -> None:
        """Sets the health to NOT_SERVING."""
        self._stopping.set()

    async def stop(self, drain_timeout_seconds: float) -> None:
        """Stops to accept connections, ends idle ones and streams, waits for requests in flight up
        to the timeout, and disconnects.
        """
        self._listener.close()
        self.server.close()
        await self.server.wait_until_idle(drain_timeout_seconds)
        await self.server.stop()
        if self._certificate is not None:
            await self._certificate.stop()
        for close_hook in self._close_hooks:
            await close_hook()


@dataclass
class HttpProcess:
    """A process with the HTTP server alone."""

    _http_server: RunningHttpServer
    _metrics_export: MetricsExport | None
    _recorders: Sequence[MetricsRecorder | SpanRecorder]
    _service_client: ServiceClient

    @property
    def http_address(self) -> str:
        return self._http_server.address

    async def stop(self, drain_timeout_seconds: float) -> None:
        """Drains, see `RunningHttpServer.stop`."""
        self._http_server.announce_stop()
        await asyncio.sleep(HEALTH_NOTICE_SECONDS)
        await self._http_server.stop(drain_timeout_seconds)
        for recorder in self._recorders:
            await recorder.stop()
        await self._service_client.close()
        if self._metrics_export is not None:
            await self._metrics_export.stop()


async def start_http_process(settings: Settings) -> HttpProcess:
    """Starts the HTTP server alone. Raises StartupError."""
    if not settings.http.listen:
        raise StartupError(
            "TALLYSTICK_HTTP__LISTEN must be an address for serve http, such as 127.0.0.1:7080."
        )
    check_span_store(settings, settings.service_addresses)
    name = process_name([HTTP_SERVER])
    metrics_export = await start_metrics_export(name, settings)
    http_server = await start_http_server(settings, settings.service_addresses)
    service_client = ServiceClient(
        settings.service_token, service_connector(settings.service_ca_file)
    )
    recorders = create_recorders(name, settings, service_client, settings.service_addresses)
    for recorder in recorders:
        recorder.start()
    return HttpProcess(http_server, metrics_export, recorders, service_client)


async def start_http_server(
    settings: Settings,
    addresses: Mapping[str, str],
    webhook_sources: Mapping[str, WebhookSource] | None = None,
) -> RunningHttpServer:
    """Starts the HTTP server. `addresses`: those of all services. `webhook_sources`: None: those of
    the configured providers. Raises StartupError.
    """
    check_addresses("the HTTP server", service_names(), addresses)
    http = settings.http
    certificate = load_certificate("http", http)
    stopping = asyncio.Event()
    service_client = ServiceClient(
        settings.service_token, service_connector(settings.service_ca_file)
    )
    webhooks = _build_webhooks(settings, service_client, addresses, webhook_sources)
    close_hooks = [webhooks.stop, service_client.close]
    channels = {name: service_client.channel(addresses[name]) for name in service_names()}
    server = HttpServer(
        [
            *_routes(
                channels,
                stopping,
                authenticates=settings.authentication != "none",
            ),
            *_console_routes(settings, channels),
            *webhooks.endpoints.routes(),
            trace_route(
                service_client.stub(
                    monitoring_service_pb2_grpc.MonitoringServiceStub, addresses["monitoring"]
                ).BatchRecordSpans,
                ALLOWED_ATTRIBUTES,
                authenticates=settings.authentication != "none",
            ),
            *_status_page(service_client, addresses).routes(),
        ],
        _limits(http),
    )
    try:
        listener = await listen_http(
            server.connect,
            http.listen,
            None if certificate is None else certificate.ssl_context(),
            reuse_port=settings.server.reuse_port,
        )
    except StartupError:
        for close_hook in close_hooks:
            await close_hook()
        raise
    webhooks.start()
    if certificate is not None:
        certificate.start()
    return RunningHttpServer(http.listen, server, listener, certificate, close_hooks, stopping)


def _limits(http: HttpSection) -> HttpLimits:
    return HttpLimits(
        max_connections=http.max_connections,
        max_body_bytes=http.max_body_bytes,
        max_body_bytes_in_flight=http.max_body_bytes_in_flight,
        header_timeout_seconds=http.header_timeout,
        body_timeout_seconds=http.body_timeout,
    )


@dataclass(frozen=True, slots=True)
class _Webhooks:
    """The endpoints of webhooks, the list of missed ones, and what must be closed with them."""

    endpoints: WebhookEndpoints
    catch_up_task: Periodic
    close_hooks: Sequence[CloseHook]

    def start(self) -> None:
        self.endpoints.start()
        self.catch_up_task.start()
        self.catch_up_task.wake()

    async def stop(self) -> None:
        await self.catch_up_task.stop()
        await self.endpoints.stop()
        for close_hook in self.close_hooks:
            await close_hook()


def _build_webhooks(
    settings: Settings,
    service_client: ServiceClient,
    addresses: Mapping[str, str],
    webhook_sources: Mapping[str, WebhookSource] | None,
) -> _Webhooks:
    """`webhook_sources`: None: those of the configured providers."""
    sources, close_hooks = (
        (webhook_sources, []) if webhook_sources is not None else _webhook_sources(settings)
    )
    endpoints = WebhookEndpoints(
        list(sources.values()), _receive_calls(service_client, addresses), service_client, _now
    )
    catch_up = WebhookCatchUp(
        list(sources.values()),
        endpoints.store,
        _now,
        timedelta(seconds=settings.http.webhook_catch_up_window),
    )
    task = Periodic(
        "http.catch_up_webhooks", settings.http.webhook_catch_up_interval, catch_up.run_once
    )
    return _Webhooks(endpoints, task, close_hooks)


def _now() -> datetime:
    return datetime.now(UTC)


def _webhook_sources(settings: Settings) -> tuple[Mapping[str, WebhookSource], list[CloseHook]]:
    """The configured providers that send webhooks, and what must be closed with them."""
    section = settings.providers
    built = build_providers(
        section.configured, section.terms, _open_no_database, lambda type_: type_.build_webhooks
    )
    return (
        {name: source.adapter for name, source in built.items()},
        [hook for source in built.values() for hook in source.close_hooks],
    )


def _open_no_database(schema: str) -> NoReturn:
    """The HTTP server reaches no database."""
    raise RuntimeError(f"the webhooks of a provider must not need the schema {schema}")


def _receive_calls(
    service_client: ServiceClient, addresses: Mapping[str, str]
) -> Mapping[WebhookSubject, ReceiveCall]:
    """What stores the events about each subject. PaymentService keeps those about nothing too."""
    payment = service_client.stub(
        payment_service_pb2_grpc.PaymentServiceStub, addresses["payment"]
    ).BatchReceiveWebhookEvents
    payout = service_client.stub(
        payout_service_pb2_grpc.PayoutServiceStub, addresses["payout"]
    ).BatchReceiveWebhookEvents
    return {
        WebhookSubject.CHARGE: payment,
        WebhookSubject.PAYOUT: payout,
        WebhookSubject.OTHER: payment,
    }


def _status_page(service_client: ServiceClient, addresses: Mapping[str, str]) -> StatusPage:
    payment = service_client.stub(payment_service_pb2_grpc.PaymentServiceStub, addresses["payment"])
    return StatusPage(payment.RefreshBuyerStatus, service_client)


def _routes(
    channels: Mapping[str, grpc.aio.Channel], stopping: asyncio.Event, *, authenticates: bool
) -> list[Route]:
    """The routes of health, documentation and calls. `channels`: by service."""
    return [
        health_route(
            [*dict.fromkeys(channels[name] for name in essential_names(service_names()))], stopping
        ),
        *documentation_routes(),
        *transcoded_routes(_rules(), _by_full_name(channels), authenticates=authenticates),
    ]


def _console_routes(settings: Settings, channels: Mapping[str, grpc.aio.Channel]) -> list[Route]:
    """The routes of the console, if it is served."""
    console, http = settings.console, settings.http
    if not console.enabled:
        return []
    return Console(
        PublicCalls([rule.method for rule in _rules()], _by_full_name(channels)),
        Sessions(console.session_key, console.session_lifetime, _now),
        ConsoleOptions(
            is_encrypted=bool(http.certificate_file) or http.tls_terminated_by_proxy,
            authenticates=settings.authentication != "none",
        ),
        {**PAGES, "settings": SettingsPage(http.listen, show_settings(settings)).show},
        ACT_PAGES,
        FORM_PAGES,
        StatementUpload(read_statement, console.max_upload_bytes),
    ).routes()


def _rules() -> list[HttpRule]:
    return http_rules(spec.descriptor for spec in SERVICES)


def _by_full_name(channels: Mapping[str, grpc.aio.Channel]) -> dict[str, grpc.aio.Channel]:
    """The channels by the full name of the service."""
    return {spec.descriptor.full_name: channels[spec.name] for spec in SERVICES}
