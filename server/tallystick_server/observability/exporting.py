"""Exports the metrics of this process in the format of Prometheus, and by OTLP over HTTP.

Counters and gauges are observable instruments of a MeterProvider. OpenTelemetry has no observable
histogram, so the readers add the histograms to what they collect.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, generate_latest

from tallystick_server.observability import metrics
from tallystick_server.observability.metrics import Histogram, attributes_of
from tallystick_server.observability.redaction import redact_errors

_START_TIME_NS = time.time_ns()


class MetricsExporter:
    """Exports until `stop`. `otlp_endpoint`: the base URL of a collector; "" means the one in
    OpenTelemetry's environment variables; None means no OTLP.
    """

    def __init__(self, service: str, otlp_endpoint: str | None) -> None:
        self._registry = CollectorRegistry()
        readers: list[sdk.MetricReader] = [
            _PrometheusReader(scope_info_enabled=False, registry=self._registry)
        ]
        if otlp_endpoint is not None:
            readers.append(_create_otlp_reader(otlp_endpoint))
        self._provider = MeterProvider(
            readers, Resource.create({"service.name": service}), shutdown_on_exit=False
        )
        meter = self._provider.get_meter("tallystick")
        for instrument in metrics.COUNTERS:
            create, metric = meter.create_observable_counter, instrument.metric
            create(metric.name, [_callback(instrument)], metric.unit, metric.description)
        for gauge in metrics.GAUGES:
            create_gauge, metric = meter.create_observable_gauge, gauge.metric
            create_gauge(metric.name, [_callback(gauge)], metric.unit, metric.description)

    def render(self) -> bytes:
        """The metrics in the text format of Prometheus."""
        return generate_latest(self._registry)

    def stop(self) -> None:
        """Sends the last values by OTLP. May take seconds if the collector does not answer."""
        self._provider.shutdown()


def _callback(instrument: Any) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for values, number in instrument.observe().items():
            yield Observation(number, attributes_of(instrument.metric, values))

    return observe


def _create_otlp_reader(endpoint: str) -> sdk.MetricReader:
    # slow to import, and seldom needed
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415
        OTLPMetricExporter,
    )

    logging.getLogger(OTLPMetricExporter.__module__).addFilter(redact_errors)
    url = f"{endpoint.rstrip('/')}/v1/metrics" if endpoint else None
    return _OtlpReader(OTLPMetricExporter(endpoint=url))


class _PrometheusReader(PrometheusMetricReader):
    def _receive_metrics(
        self, metrics_data: sdk.MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        super()._receive_metrics(_with_histograms(metrics_data), timeout_millis, **kwargs)


class _OtlpReader(sdk.PeriodicExportingMetricReader):
    def _receive_metrics(
        self, metrics_data: sdk.MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        super()._receive_metrics(_with_histograms(metrics_data), timeout_millis, **kwargs)


def _with_histograms(metrics_data: sdk.MetricsData) -> sdk.MetricsData:
    """The collected metrics and the histograms, in the scope of the counters."""
    (resource_metrics,) = metrics_data.resource_metrics
    first_scope, *other_scopes = resource_metrics.scope_metrics
    histograms = [*first_scope.metrics, *_build_histograms(metrics.HISTOGRAMS)]
    scopes = [replace(first_scope, metrics=histograms), *other_scopes]
    return sdk.MetricsData([replace(resource_metrics, scope_metrics=scopes)])


def _build_histograms(histograms: Iterable[Histogram]) -> Iterator[sdk.Metric]:
    now = time.time_ns()
    for histogram in histograms:
        metric = histogram.metric
        points = [
            sdk.HistogramDataPoint(
                attributes=attributes_of(metric, values),
                start_time_unix_nano=_START_TIME_NS,
                time_unix_nano=now,
                count=sum(series.bucket_counts),
                sum=series.total,
                bucket_counts=series.bucket_counts,
                explicit_bounds=metric.boundaries,
                # optional in OTLP, and not in the format of Prometheus
                min=None,  # type: ignore[arg-type]
                max=None,  # type: ignore[arg-type]
            )
            for values, series in histogram.observe().items()
        ]
        if points:
            data = sdk.Histogram(points, sdk.AggregationTemporality.CUMULATIVE)
            yield sdk.Metric(metric.name, metric.description, metric.unit, data)
