"""The disk of the data folder, as a metric."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tallystick_server.observability import metrics
from tallystick_server.observability.metrics import AttributeValues


class DiskMeter:
    """Measures at each export, from `start` to `stop`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self) -> None:
        metrics.DISK_UTILIZATION.track(self, DiskMeter._observe)

    async def stop(self) -> None:
        metrics.DISK_UTILIZATION.untrack(self)

    def _observe(self) -> Mapping[AttributeValues, float]:
        """The used fraction, as `df` shows it; none if there is no such folder, or its file system
        reports no size.
        """
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            return {}
        size = usage.used + usage.free
        return {(): usage.used / size} if size else {}
