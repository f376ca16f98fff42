"""The export of metrics that the settings ask for."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from tallystick_server.app.configuration import Settings
from tallystick_server.app.errors import StartupError
from tallystick_server.app.listening import failure_cause
from tallystick_server.observability.exporting import MetricsExporter
from tallystick_server.observability.scraping import ScrapeServer

_OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@dataclass
class MetricsExport:
    """The export of this process's metrics, until `stop`."""

    _exporter: MetricsExporter
    _server: ScrapeServer

    async def stop(self) -> None:
        """Ends scrapes, and sends the last values."""
        await self._server.stop()
        await asyncio.to_thread(self._exporter.stop)


def exports_metrics(settings: Settings) -> bool:
    """Whether metrics are exported by Prometheus or OTLP."""
    return bool(settings.metrics.listen) or _otlp_endpoint(settings) is not None


async def start_metrics_export(service: str, settings: Settings) -> MetricsExport | None:
    """Starts the export, if there is one. Raises StartupError if the address cannot be bound."""
    if not exports_metrics(settings):
        return None
    exporter = MetricsExporter(service, _otlp_endpoint(settings))
    server = ScrapeServer(exporter.render)
    address = settings.metrics.listen
    if address:
        host, _, port = address.rpartition(":")
        try:
            await server.start(host.strip("[]"), int(port))
        except OSError as error:
            await asyncio.to_thread(exporter.stop)
            raise StartupError(
                f"Cannot listen on {address}: {failure_cause(address)}. Set "
                "TALLYSTICK_METRICS__LISTEN to another address, one for each process."
            ) from error
    return MetricsExport(exporter, server)


def _otlp_endpoint(settings: Settings) -> str | None:
    """The base URL of the collector, "" if OpenTelemetry's variables have it, or None."""
    if any(os.environ.get(name) for name in _OTLP_VARIABLES):
        return ""
    return settings.tracing.otlp_endpoint or None
