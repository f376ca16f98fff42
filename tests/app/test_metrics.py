"""Metrics: what a scrape of a running platform shows, and how the export is bounded."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from tallystick import InvalidArgumentError
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.errors import StartupError
from tallystick_server.app.metrics_export import start_metrics_export
from tallystick_server.observability.exporting import MetricsExporter
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tests.support.charges import (
    WAIT_FOR_ACCEPTANCE,
    is_paid,
    payment_of_dead_process,
    wait_for_dead_letter,
)
from tests.support.metrics import Scrape, is_closed, parse, scrape
from tests.support.payments import create_payment
from tests.support.platform import eventually, free_address, serve_platform
from tests.support.reconciliation import Provider

_CREATE_PAYMENT = "tallystick.payment.v1.PaymentService/CreatePayment"
_RPC_COUNT = "rpc_server_call_duration_seconds_count"
_CHARGES = "tallystick_charges_completed_total"
_PROVIDER_COUNT = "tallystick_provider_call_duration_seconds_count"


def metrics_settings() -> Settings:
    """A platform that is scraped, with a fast monitor; a rejected charge is dead-lettered."""
    return Settings().replace(
        metrics__listen=free_address(),
        retry={("", RetryReason.REJECTED): RetryPolicy(RetryStrategy.CANCEL)},
        worker__scan_interval=0.1,
        worker__monitor_interval=0.1,
    )


def test_a_scrape_shows_what_has_happened(scratch_database: DatabaseUrls) -> None:
    """After a payment, a declined one, a rejected call and a rejected charge, which is a dead
    letter with an alert, every figure is exact.
    """
    with (
        serve_platform(scratch_database, metrics_settings()) as platform,
        platform.client() as client,
    ):
        before = scrape(platform)
        create_payment(client, "5.00")
        create_payment(client, "6.00", token="tok_decline")
        with pytest.raises(InvalidArgumentError):
            create_payment(client, "-1")
        payment = create_payment(client, "7.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
        wait_for_dead_letter(client, payment)

        def figures() -> dict[str, float]:
            after = scrape(platform)
            return {
                **_counted(before, after),
                "open dead letters": after.total(
                    "tallystick_dead_letters_open", service="payment", cause="REJECTED"
                ),
                "open alerts": after.total("tallystick_alerts_open", service="payment"),
                "work": after.total("tallystick_work_open", service="payment", queue="DEAD_LETTER"),
                "no work": after.total("tallystick_work_open", service="payout"),
                "work that has waited": after.has(
                    "tallystick_work_oldest_age_seconds", service="payment", queue="DEAD_LETTER"
                )
                and after.total("tallystick_work_oldest_age_seconds", service="payment") > 0,
                "money": after.total(
                    "tallystick_money_in_flight", service="payment", currency="EUR"
                ),
                "queued": after.total("tallystick_operations_queued", service="payment"),
                "outbox lag": after.total("tallystick_outbox_lag_seconds", service="payment"),
                "in flight": after.total("tallystick_operations_in_flight", service="payment"),
                "waiting": after.total("tallystick_batch_queue_length", batcher="payment.create"),
            }

        expected = {
            "accepted calls": 3,
            "rejected calls": 1,
            "accepted charges": 1,
            "declined charges": 1,
            "succeeded": 1,
            "declined": 1,
            "rejected by the provider": 1,
            "stored payments": 3,
            "batches": 3,
            "new dead letters": 1,
            "new alerts": 1,
            "open dead letters": 1,
            "open alerts": 1,
            "work": 1,
            "no work": 0,
            "work that has waited": True,
            "money": 700,
            "queued": 0,
            "outbox lag": 0,
            "in flight": 0,
            "waiting": 0,
        }
        eventually(lambda: figures() == expected)
        assert figures() == expected


def _counted(before: Scrape, after: Scrape) -> dict[str, float]:
    """How far counters have grown."""

    def grown(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    charge_labels = {"provider": "sandbox", "payment_method_type": "CARD", "currency": "EUR"}
    return {
        "accepted calls": grown(_RPC_COUNT, rpc_method=_CREATE_PAYMENT, error_type=""),
        "rejected calls": grown(
            _RPC_COUNT,
            rpc_method=_CREATE_PAYMENT,
            rpc_response_status_code="INVALID_ARGUMENT",
            error_type="AMOUNT_OUT_OF_RANGE",
        ),
        "accepted charges": grown(_CHARGES, **charge_labels, outcome="Succeeded"),
        "declined charges": grown(_CHARGES, **charge_labels, outcome="Declined"),
        "succeeded": grown(_PROVIDER_COUNT, provider="sandbox", action="send", outcome="Succeeded"),
        "declined": grown(_PROVIDER_COUNT, provider="sandbox", action="send", outcome="Declined"),
        "rejected by the provider": grown(_PROVIDER_COUNT, action="send", outcome="Unknown"),
        "stored payments": grown("tallystick_batch_size_sum", batcher="payment.create"),
        "batches": grown("tallystick_batch_duration_seconds_count", batcher="payment.create"),
        "new dead letters": grown("tallystick_dead_letters_created_total", cause="REJECTED"),
        "new alerts": grown("tallystick_alerts_raised_total", kind="DEAD_LETTER"),
    }


def test_a_scrape_shows_the_disk_and_the_clock(
    scratch_database: DatabaseUrls, tmp_path: Path
) -> None:
    """The used part of the disk of the data folder, and a database whose clock is a minute ahead.
    Without the folder there is no such figure.
    """
    with psycopg.connect(scratch_database.admin) as admin:
        admin.execute(
            "create or replace function event.clock() returns timestamptz language sql volatile as "
            "'select clock_timestamp() + interval ''60 s'''"
        )
    settings = metrics_settings().replace(data_dir=tmp_path)
    with serve_platform(scratch_database, settings, names=("event",)) as platform:
        assert eventually(lambda: scrape(platform).has("tallystick_clock_deviation_seconds"))
        figures = scrape(platform)
        assert 55 < figures.total("tallystick_clock_deviation_seconds") < 65
        assert 0 < figures.total("system_filesystem_utilization") < 1
    settings = metrics_settings().replace(data_dir=tmp_path / "none")
    with serve_platform(scratch_database, settings, names=("event",)) as platform:
        assert eventually(lambda: scrape(platform).has("tallystick_clock_deviation_seconds"))
        assert not scrape(platform).has("system_filesystem_utilization")


def test_expected_entries_are_shown_by_their_age(scratch_database: DatabaseUrls) -> None:
    """What the ledger has on a clearing account and no statement has yet, by account, currency and
    age in days.
    """
    settings = metrics_settings().replace(reconciliation__posting_interval=0.1)
    with (
        serve_platform(scratch_database, settings) as platform,
        platform.client() as client,
    ):
        provider = Provider(client)
        now = datetime.now(UTC)
        provider.pay_in(300, time=now - timedelta(days=4))
        provider.pay_in(200, time=now - timedelta(days=4, hours=1))
        provider.pay_in(50, time=now)
        provider.pay_in(7, time=now, currency="JPY")

        def amounts() -> dict[tuple[str, str], float]:
            after = scrape(platform)
            return {
                (currency, days): after.total(
                    "tallystick_clearing_expected",
                    service="reconciliation",
                    account=provider.account,
                    currency=currency,
                    min_age_days=days,
                )
                for currency in ("EUR", "JPY")
                for days in ("0", "3")
            }

        expected = {("EUR", "0"): 50, ("EUR", "3"): 500, ("JPY", "0"): 7, ("JPY", "3"): 0}
        eventually(lambda: amounts() == expected)
        assert amounts() == expected


def test_an_operation_that_is_due_and_not_claimed_is_shown(scratch_database: DatabaseUrls) -> None:
    """The number of due operations, the age of the oldest one, and why they are retried."""
    settings = metrics_settings().replace(
        worker__scan_interval=3600.0,
        retry={("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.01, 0.01, 9)},
    )
    with (
        serve_platform(scratch_database, settings) as platform,
        platform.client() as client,
    ):
        create_payment(client, "5.00", token="tok_unreachable:9", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: scrape(platform).total("tallystick_operations_due", service="payment") == 1
        )
        after = scrape(platform)
        assert after.total("tallystick_operations_queued", retry_reason="NOT_SENT") == 1
        assert eventually(
            lambda: (
                scrape(platform).total(
                    "tallystick_operations_oldest_due_age_seconds", service="payment"
                )
                > 1
            )
        )


def test_a_lease_of_a_dead_process_is_lost(scratch_database: DatabaseUrls) -> None:
    """A claim of an operation whose holder never gave its lease back counts as a lost lease."""
    settings = metrics_settings().replace(worker__lease_duration=3.0, providers__timeout=0.5)
    with (
        serve_platform(scratch_database, settings) as platform,
        platform.client() as client,
    ):
        before = scrape(platform).total("tallystick_leases_lost_total", service="payment")
        create_payment(client, "5.00")
        payment = payment_of_dead_process(platform, client)
        assert is_paid(client, payment)
        assert eventually(
            lambda: (
                scrape(platform).total("tallystick_leases_lost_total", service="payment")
                == before + 1
            )
        )


def test_one_process_exports_what_is_in_a_database(scratch_database: DatabaseUrls) -> None:
    """Of two platforms on one database only the leader exports the stored gauges: their sum is
    right. When it stops, the other one exports them.
    """
    with serve_platform(scratch_database, metrics_settings()) as second:
        with (
            serve_platform(scratch_database, metrics_settings()) as first,
            first.client() as client,
        ):
            payment = create_payment(
                client, "7.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE
            )
            wait_for_dead_letter(client, payment)
            assert eventually(lambda: scrape(first).total("tallystick_money_in_flight") == 700)
        assert eventually(lambda: scrape(second).total("tallystick_money_in_flight") == 700)


def test_connections_and_transactions_are_shown(scratch_database: DatabaseUrls) -> None:
    """Transactions by service and result, and the connections of each pool."""
    with (
        serve_platform(scratch_database, metrics_settings()) as platform,
        platform.client() as client,
    ):
        create_payment(client, "5.00")
        after = scrape(platform)
    labels = {"db_namespace": "payment", "db_system_name": "postgresql", "error_type": ""}
    assert after.total(
        "db_client_operation_duration_seconds_count", db_operation_name="transaction", **labels
    )
    pool = {"db_client_connection_pool_name": "payment"}
    assert after.total("db_client_connection_count", **pool) == 4
    assert after.has("db_client_connection_count", **pool, db_client_connection_state="used")
    assert after.has("db_client_connection_pending_requests", **pool)
    assert after.total("process_cpu_time_seconds_total") > 0


def test_without_a_listener_no_metrics_are_exported() -> None:
    """By default nothing listens and nothing is sent."""
    assert asyncio.run(start_metrics_export("x", Settings())) is None


def test_an_address_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartupError) as error:
            asyncio.run(start_metrics_export("x", Settings().replace(metrics__listen=address)))
    assert str(error.value) == (
        f"Cannot listen on {address}: address already in use. Set TALLYSTICK_METRICS__LISTEN to "
        "another address, one for each process."
    )


def test_the_listener_ends_with_the_drain(scratch_database: DatabaseUrls) -> None:
    """Even while a scraper sends nothing, the drain ends, and then nothing listens."""
    settings = metrics_settings()
    host, _, port = settings.metrics.listen.rpartition(":")
    with serve_platform(scratch_database, settings):
        silent = socket.create_connection((host, int(port)), timeout=10)
    with closing(silent):
        assert is_closed(silent)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=10)


class MetricsCollector(BaseHTTPRequestHandler):
    """An OTLP collector that records the names and the services of the metrics it receives."""

    received: ClassVar[set[tuple[str, str, str]]] = set()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        if self.path == "/v1/metrics":
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
                self.received.update(
                    (attributes["service.name"], metric.name, metric.WhichOneof("data") or "")
                    for scope in resource.scope_metrics
                    for metric in scope.metrics
                )
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Suppresses the log."""


@pytest.fixture
def collector_url() -> Iterator[str]:
    """The base URL of a collector."""
    MetricsCollector.received.clear()
    with HTTPServer(("127.0.0.1", 0), MetricsCollector) as collector:
        thread = threading.Thread(target=collector.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{collector.server_port}"
        finally:
            collector.shutdown()
            thread.join(10)


@pytest.mark.parametrize("source", ["setting", "variable"])
def test_metrics_are_sent_by_otlp(
    collector_url: str,
    scratch_database: DatabaseUrls,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    """The endpoint of the traces, or the one in OpenTelemetry's own variable, receives metrics of
    every kind; the last ones when the process stops.
    """
    settings = metrics_settings().replace(metrics__listen="")
    if source == "setting":
        settings = settings.replace(tracing__otlp_endpoint=collector_url)
    else:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector_url)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    gauge = ("tallystick-all", "tallystick.batch.queue.length", "gauge")
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        create_payment(client, "5.00")
        assert eventually(lambda: gauge in MetricsCollector.received)
    assert MetricsCollector.received >= {
        ("tallystick-all", "rpc.server.call.duration", "histogram"),
        ("tallystick-all", "process.cpu.time", "sum"),
    }


def test_a_collector_that_does_not_answer_shows_no_url(caplog: pytest.LogCaptureFixture) -> None:
    """The log reports that metrics could not be sent, without the endpoint, which may contain a
    password.
    """
    exporter = MetricsExporter("x", "http://us:secret@host:99999999")
    exporter.stop()
    assert "metrics" in caplog.text
    assert "secret" not in caplog.text


def test_a_render_has_no_sample_twice() -> None:
    exporter = MetricsExporter("x", None)
    try:
        samples = [
            (name, *sorted(labels.items()))
            for name, labels, _ in parse(exporter.render().decode()).samples
        ]
    finally:
        exporter.stop()
    assert len(samples) == len(set(samples))
