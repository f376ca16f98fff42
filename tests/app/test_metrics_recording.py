"""Each process sends its metrics to MonitoringService, and none depends on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import make_url

from tallystick import Client
from tallystick.monitoring.v1 import monitoring_pb2
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.roles import role_names
from tallystick_server.app.metrics_recording import MetricsRecorder
from tallystick_server.observability import metrics, names
from tallystick_server.observability.metrics import Counter
from tallystick_server.rpc.authentication import NoAuthentication
from tallystick_server.rpc.call import Call
from tallystick_server.rpc.server import RpcServer
from tallystick_server.rpc.service_client import ServiceClient
from tests.support.health import is_serving
from tests.support.payments import create_payment
from tests.support.platform import eventually, free_address, serve_platform
from tests.support.processes import UNREACHABLE_URL, environment_of, running_process
from tests.support.rpc import UniformHandlers, serve_rpc

_CALLS = "rpc.server.call.duration"
_CREATE_PAYMENT = "rpc.method=tallystick.payment.v1.PaymentService/CreatePayment"
_FAILURES = "tallystick.metrics.recording_failures"


def recording_settings() -> Settings:
    """A platform that records often."""
    return Settings().replace(monitoring__record_interval=0.1, worker__monitor_interval=0.1)


def recorded(client: Client, metric: str, *filters: str, **fields: Any) -> float:
    """The sum of the increases of a metric in the last hour; of a histogram their number."""
    request = pb.GetMetricHistoryRequest(
        metric=metric, filters=filters, **{"aggregation": monitoring_pb2.AGGREGATION_RATE, **fields}
    )
    response = client.monitoring.GetMetricHistory(request)
    return sum(
        round(point.value * response.step.seconds, 6)
        for history in response.histories
        for point in history.points
    )


def first_recorded(client: Client) -> float:
    """The number of calls of CreatePayment in the first recording. It is not 0 if other platforms
    ran in this process before.
    """
    assert eventually(lambda: recorded(client, "process.cpu.time"))
    return recorded(client, _CALLS, _CREATE_PAYMENT)


def failure_count() -> int:
    """The failures of this process so far."""
    return sum(metrics.RECORDING_FAILURES.observe().values())  # type: ignore[arg-type]


@contextmanager
def unreachable_monitoring(databases: DatabaseUrls) -> Iterator[None]:
    """Only MonitoringService cannot log in to its database in the block."""
    name = str(make_url(databases.admin).database)
    role = role_names(name, "monitoring").service
    with psycopg.connect(databases.admin, autocommit=True) as admin:
        admin.execute(f'alter role "{role}" nologin'.encode())
        try:
            while admin.execute(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = %s",
                (role,),
            ).fetchall():
                pass
            yield
        finally:
            admin.execute(f'alter role "{role}" login'.encode())


def test_the_calls_of_a_platform_are_counted(scratch_database: DatabaseUrls) -> None:
    """Each call counts once, and figures that are in a database are recorded too, although nothing
    is exported.
    """
    with (
        serve_platform(scratch_database, recording_settings()) as platform,
        platform.client() as client,
    ):
        before = first_recorded(client)
        for _ in range(3):
            create_payment(client, "5.00")
        assert eventually(lambda: recorded(client, _CALLS, _CREATE_PAYMENT) == before + 3)
        request = pb.ListMetricSeriesRequest(metric="tallystick.outbox.lag", page_size=200)
        assert eventually(
            lambda: (
                {
                    item.attributes["service"]
                    for item in client.monitoring.ListMetricSeries(request).series
                }
                >= {"payment", "payout", "wallet", "ledger", "reconciliation"}
            )
        )


def test_each_start_records_under_its_own_id(scratch_database: DatabaseUrls) -> None:
    """Platforms on one database record under ids of their own, one after each start, and the last
    values of one that stops are recorded.
    """
    settings = recording_settings().replace(monitoring__record_interval=3600.0)
    with serve_platform(scratch_database, settings) as other, other.client() as client:
        for _ in range(2):
            with serve_platform(scratch_database, settings) as platform:
                assert is_serving(platform.address)
        series = client.monitoring.ListMetricSeries(
            pb.ListMetricSeriesRequest(metric="process.cpu.time")
        ).series
        assert len({item.process_id for item in series}) == 2
        assert {item.process_name for item in series} == {"tallystick-all"}


def test_without_its_database_payments_continue(scratch_database: DatabaseUrls) -> None:
    """While MonitoringService has no database, payments succeed, the health is SERVING, and
    failures are counted. Afterwards the increases of that time are recorded.
    """
    with (
        serve_platform(scratch_database, recording_settings()) as platform,
        platform.client() as client,
    ):
        before = first_recorded(client)
        failures = recorded(client, _FAILURES)
        with unreachable_monitoring(scratch_database):
            count = failure_count()
            assert create_payment(client, "5.00").is_payment_done
            assert eventually(lambda: failure_count() > count, 60)
            assert create_payment(client, "6.00").is_payment_done
            assert is_serving(platform.address)
            assert is_serving(platform.address, "tallystick.payment.v1.PaymentService")
        assert eventually(lambda: recorded(client, _CALLS, _CREATE_PAYMENT) == before + 2, 30)
        assert eventually(lambda: recorded(client, _FAILURES) > failures, 30)


def test_a_process_starts_without_the_database_of_metrics(scratch_database: DatabaseUrls) -> None:
    """`serve all` starts, is SERVING and takes payments if only the database of MonitoringService
    does not answer.
    """
    address = free_address()
    environment = {
        **environment_of(scratch_database),
        "TALLYSTICK_SERVER__LISTEN": address,
        "TALLYSTICK_DATABASE__SERVICE_URLS": f"monitoring={UNREACHABLE_URL}",
        "TALLYSTICK_MONITORING__RECORD_INTERVAL": "0.2",
    }
    with running_process(["serve", "all"], environment, address), Client(address) as client:
        assert create_payment(client, "5.00").is_payment_done
        service = "tallystick.monitoring.v1.MonitoringService"
        assert eventually(lambda: not is_serving(address, service))
        assert is_serving(address)


class _Receiver(UniformHandlers):
    """A MonitoringService that notes the series of each request."""

    def __init__(self) -> None:
        super().__init__(dict)
        self.requests: list[list[str]] = []

    async def BatchRecordSamples(
        self, request: pb.BatchRecordSamplesRequest, _call: Call
    ) -> pb.BatchRecordSamplesResponse:
        metric_names = [metric.metric for metric in request.metrics]
        assert len(set(metric_names)) == len(metric_names)
        series = [series for metric in request.metrics for series in metric.series]
        self.requests.append([item.attributes["service"] for item in series])
        return pb.BatchRecordSamplesResponse(recorded_count=len(series))


def test_of_too_many_series_each_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,500 series that always change, each request has 1,000, and three have all of them. What
    a request leaves out is counted.
    """
    first, second = Counter(names.LEASES_LOST), Counter(names.EVENTS_REJECTED)
    monkeypatch.setattr(metrics, "COUNTERS", (first, second))
    monkeypatch.setattr(metrics, "GAUGES", ())
    monkeypatch.setattr(metrics, "HISTOGRAMS", ())
    services = [f"service-{number}" for number in range(2_500)]

    receiver = _Receiver()

    async def run(address: str) -> None:
        service_client = ServiceClient()
        recorder = MetricsRecorder(service_client, address, "x", uuid4(), 3600)
        for _ in range(3):
            for number, service in enumerate(services):
                (first if number % 2 else second).add(1, service)
            await recorder.run_once()
        assert recorder._dropped_count == 1_500
        await service_client.close()

    with serve_rpc(RpcServer(NoAuthentication()), {"MonitoringService": receiver}) as (address, _):
        asyncio.run(run(address))
    assert [len(request) for request in receiver.requests] == [1_000] * 3
    assert {service for request in receiver.requests for service in request} == {*services}
