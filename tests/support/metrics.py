"""Scrapes of a platform's metrics."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.support.platform import ServedPlatform


@dataclass(frozen=True)
class Scrape:
    """The samples of one scrape: name, labels and number."""

    samples: tuple[tuple[str, Mapping[str, str], float], ...]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name and these labels; an empty value also means that
        the label is missing.
        """
        return sum(
            number
            for sample_name, sample_labels, number in self.samples
            if sample_name == name
            and all(sample_labels.get(label, "") == value for label, value in labels.items())
        )

    def has(self, name: str, **labels: str) -> bool:
        """Whether there is such a sample."""
        return any(
            sample_name == name and labels.items() <= sample_labels.items()
            for sample_name, sample_labels, _ in self.samples
        )


def scrape(platform: ServedPlatform) -> Scrape:
    """The metrics of a platform that exports them. They may be a second old."""
    url = f"http://{platform.settings.metrics.listen}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        return parse(response.read().decode())


def parse(text: str) -> Scrape:
    """The samples of a page in the format of Prometheus."""
    return Scrape(
        tuple(
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )
    )


def is_closed(connection: socket.socket) -> bool:
    """Waits for the next byte. Whether the peer has closed the connection instead."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
