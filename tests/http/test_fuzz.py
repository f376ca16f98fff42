"""Every operation of the OpenAPI document is fuzzed by schemathesis."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick_core.access import Role
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, SERVICES, service_names
from tallystick_server.verify.run import verify
from tests.support.callers import settings_with_callers, token_of
from tests.support.platform import FAST_RETRY, ServedPlatform, serve_platform

_CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,negative_data_rejection,"
    "unsupported_method,allow_header_conformance"
)
_SEED = 20
_TIMEOUT_SECONDS = 3600
# every role, so that each call gets past its access check
_CALLERS = {"fuzz": ("", {Role.TEAM, Role.PAYOUTS, Role.OPERATOR, Role.AUDITOR})}


@pytest.fixture
def fuzzed(scratch_database: DatabaseUrls) -> Iterator[ServedPlatform]:
    settings = settings_with_callers(_CALLERS, retry=FAST_RETRY, worker__scan_interval=0.1)
    with serve_platform(scratch_database, settings, (*service_names(), HTTP_SERVER)) as platform:
        yield platform


def run_schemathesis(
    platform: ServedPlatform, folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Fuzzes with a fixed seed. The calls have 2 s, so that streams end."""
    return subprocess.run(
        [
            str(Path(sys.executable).parent / "st"),
            "run",
            f"{platform.url}/openapi.json",
            f"--checks={_CHECKS}",
            f"--header=Authorization: Bearer {token_of('fuzz')}",
            "--header=Request-Timeout: 2",
            f"--seed={_SEED}",
            "--suppress-health-check=all",
            "--generation-database=none",
            "--continue-on-failure",
            "--no-shrink",
            "--warnings=off",
            *arguments,
        ],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_SECONDS,
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One run for all services, because each run imports schemathesis; thorough: one for each, so
    that they run in parallel.
    """
    services = [spec.descriptor.name for spec in SERVICES]
    runs = [[name] for name in services] if metafunc.config.getoption("--thorough") else [services]
    metafunc.parametrize("services", runs, ids=" ".join)


def test_schemathesis_finds_nothing(
    fuzzed: ServedPlatform, tmp_path: Path, services: list[str], *, thorough: bool
) -> None:
    """No case of any operation makes an error of the server, gets an answer that the document does
    not have, or is accepted against its schema. Afterwards the database is consistent.
    """
    phases, cases = ("examples,coverage,fuzzing", 500) if thorough else ("examples,fuzzing", 5)
    completed = run_schemathesis(
        fuzzed,
        tmp_path,
        *(f"--include-tag={service}" for service in services),
        f"--phases={phases}",
        f"--max-examples={cases}",
    )
    assert completed.returncode == 0, completed.stdout[-10_000:]
    assert "No issues found" in completed.stdout
    report = verify(fuzzed.databases)
    assert report.passed, report.violations
