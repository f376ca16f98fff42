"""A running Prometheus with the configuration and the rules of `deploy/prometheus`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.platform import ROOT, eventually, free_address

_FOLDER = ROOT / "deploy" / "prometheus"


class Prometheus:
    """Queries of a running Prometheus."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}"

    def query(self, expression: str) -> Sequence[Mapping[str, Any]]:
        """The values of an expression now; each has labels. Raises AssertionError."""
        answer = self._get("/api/v1/query", query=expression)
        return list(answer["result"])

    def rules(self) -> Sequence[Mapping[str, Any]]:
        """All rules, with the health of their last evaluation: unknown before the first one."""
        groups = self._get("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self._url}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _get(self, path: str, **parameters: str) -> Any:
        response = httpx.get(f"{self._url}{path}", params=parameters, timeout=30).json()
        assert response["status"] == "success", (parameters, response)
        return response["data"]


@contextmanager
def run_prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """Scrapes an address each second until the block ends. Skips the test if Prometheus is not
    installed.
    """
    path = shutil.which("prometheus")
    if path is None:
        pytest.skip("prometheus is not here; .ci/run installs it on Debian")
    configuration = yaml.safe_load((_FOLDER / "prometheus.yaml").read_text())
    configuration["global"] = dict.fromkeys(configuration["global"], "1s")
    configuration["rule_files"] = [f"{_FOLDER}/{name}" for name in configuration["rule_files"]]
    (scrape_configuration,) = configuration["scrape_configs"]
    scrape_configuration["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    address = free_address()
    command = [
        path,
        f"--config.file={folder}/prometheus.yaml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stderr=log) as process,
    ):
        try:
            prometheus = Prometheus(address)
            assert eventually(lambda: prometheus.is_ready() or process.poll() is not None, 60)
            assert process.poll() is None, (folder / "log").read_text()
            yield prometheus
        finally:
            process.terminate()
            process.wait(30)
