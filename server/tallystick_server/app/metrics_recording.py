"""Sends the metrics of this process to MonitoringService."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from tallystick.monitoring.v1 import monitoring_pb2, monitoring_service_pb2_grpc
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_core.errors import ApiError
from tallystick_server.app.configuration import Settings
from tallystick_server.observability import metrics, names
from tallystick_server.observability.metrics import SeriesSnapshot
from tallystick_server.observability.names import MetricKind
from tallystick_server.operations.periodic import Periodic
from tallystick_server.rpc.service_client import ServiceCallRejected, ServiceClient

log = logging.getLogger(__name__)

SERVICE = "monitoring"
_TIMEOUT_SECONDS = 5.0
_LAST_SECONDS = 1.0  # for the last request, while the process stops
_MAX_SERIES = 1_000  # of one request; the rest has to wait for the next one
_KINDS = {
    MetricKind.COUNTER: monitoring_pb2.METRIC_KIND_COUNTER,
    MetricKind.GAUGE: monitoring_pb2.METRIC_KIND_GAUGE,
    MetricKind.HISTOGRAM: monitoring_pb2.METRIC_KIND_HISTOGRAM,
}
_SeriesKey = tuple[str, tuple[tuple[str, str], ...]]


class _Sent(NamedTuple):
    """The values of a series that were accepted last, and the sequence of their request."""

    sequence: int
    snapshot: SeriesSnapshot | None


_NEVER = _Sent(0, None)


def records_metrics(settings: Settings, addresses: Mapping[str, str]) -> bool:
    """Whether processes with these addresses send their metrics to MonitoringService."""
    return bool(settings.monitoring.record_interval and addresses.get(SERVICE))


class MetricsRecorder:
    """Sends the metrics that have changed at an interval, one request at a time. A failure is
    counted, and disturbs nothing else: the next request has the same totals or higher ones.
    """

    def __init__(
        self,
        service_client: ServiceClient,
        address: str,
        process_name: str,
        process_id: UUID,
        interval_seconds: float,
    ) -> None:
        stub = service_client.stub(monitoring_service_pb2_grpc.MonitoringServiceStub, address)
        self._method = stub.BatchRecordSamples
        self._service_client = service_client
        self._process_name = process_name
        self._process_id = str(process_id)
        self._sequence = 0
        self._sent: dict[_SeriesKey, _Sent] = {}
        self._dropped_count = 0
        self._is_failing = False
        self._task = Periodic("metrics.recording", interval_seconds, self.run_once)

    def start(self) -> None:
        metrics.DROPPED_SERIES.track(self, lambda recorder: {(): recorder._dropped_count})
        self._task.start()

    async def stop(self) -> None:
        """Sends the last values. Takes a second if MonitoringService does not answer."""
        await self._task.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await self.run_once()
        metrics.DROPPED_SERIES.untrack(self)

    async def run_once(self) -> None:
        """Sends what has changed since the last request that was accepted."""
        self._sequence += 1
        changed = [item for item in metrics.snapshot() if self._has_changed(item)]
        series = self._select(changed)
        request = pb.BatchRecordSamplesRequest(
            process_id=self._process_id,
            process_name=self._process_name,
            sequence=self._sequence,
            metrics=_to_messages(series),
        )
        try:
            response = await self._service_client.call(self._send, request)
        except (ApiError, ServiceCallRejected) as error:
            metrics.RECORDING_FAILURES.add(1)
            if not self._is_failing:
                log.warning(
                    "the metrics of this process are not recorded: %s",
                    error,
                    extra=names.RECORDING_FAILED.extra,
                )
            self._is_failing = True
            return
        if self._is_failing:
            log.warning(
                "the metrics of this process are recorded again",
                extra=names.RECORDING_RESUMED.extra,
            )
        self._is_failing = False
        self._sent.update((_key_of(item), _Sent(self._sequence, item)) for item in series)
        self._count_dropped(response.dropped_count + len(changed) - len(series))

    def _has_changed(self, item: SeriesSnapshot) -> bool:
        """Whether a series must be sent. A gauge is always: without a value it is not known."""
        sent = self._sent.get(_key_of(item))
        return item.metric.kind is MetricKind.GAUGE or sent is None or sent.snapshot != item

    def _select(self, changed: Sequence[SeriesSnapshot]) -> Sequence[SeriesSnapshot]:
        """The series of a request, by metric. Of too many those that were not sent for longest, so
        each is sent at last.
        """
        if len(changed) <= _MAX_SERIES:
            return changed
        oldest = sorted(changed, key=lambda item: self._sent.get(_key_of(item), _NEVER).sequence)
        return sorted(oldest[:_MAX_SERIES], key=lambda item: item.metric.name)

    def _count_dropped(self, count: int) -> None:
        if count and not self._dropped_count:
            log.warning(
                "a recording left out %d series of metrics: there are as many as the setting "
                "monitoring.max_series, or more than %d have changed",
                count,
                _MAX_SERIES,
                extra=names.SERIES_DROPPED.extra,
            )
        self._dropped_count = count

    async def _send(self, request: Any, **options: Any) -> pb.BatchRecordSamplesResponse:
        response: pb.BatchRecordSamplesResponse = await self._method(
            request, **{**options, "timeout": _TIMEOUT_SECONDS}
        )
        return response


def create_recorder(
    process_name: str,
    settings: Settings,
    service_client: ServiceClient,
    addresses: Mapping[str, str],
) -> MetricsRecorder | None:
    """The recorder of this process, if it records."""
    if not records_metrics(settings, addresses):
        return None
    return MetricsRecorder(
        service_client,
        addresses[SERVICE],
        process_name,
        uuid4(),
        settings.monitoring.record_interval,
    )


def _key_of(item: SeriesSnapshot) -> _SeriesKey:
    return item.metric.name, tuple(sorted(item.attributes.items()))


def _to_messages(series: Sequence[SeriesSnapshot]) -> list[pb.RecordedMetric]:
    return [
        pb.RecordedMetric(
            metric=metric.name,
            kind=_KINDS[metric.kind],
            boundaries=metric.boundaries,
            series=[
                pb.RecordedSeries(
                    attributes=item.attributes, value=item.value, bucket_counts=item.bucket_counts
                )
                for item in group
            ],
        )
        for metric, group in groupby(series, lambda item: item.metric)
    ]
