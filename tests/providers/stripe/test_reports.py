"""Reports of Stripe: requested once, polled, and downloaded as a stream with a limit."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from tallystick_core.provider.outcome import NotSent, RetryReason, Unknown
from tallystick_server.providers.stripe.errors import NoAnswer, NotConnected
from tallystick_server.providers.stripe.reports import (
    ReportFailed,
    ReportRequest,
    ReportRun,
    StripeReports,
)
from tests.providers.stripe.scripted_stripe import Answer, ScriptedTransport, api_of, error

REQUEST = ReportRequest(
    "dev-report-1",
    "payout_reconciliation.itemized.7",
    ("automatic_payout_id", "net"),
    datetime(2026, 11, 1, tzinfo=UTC),
    datetime(2026, 12, 1, tzinfo=UTC),
)
CREATE, READ = "POST /v1/reporting/report_runs", "GET /v1/reporting/report_runs/frr_1"
FILE = "GET /v1/files/file_1/contents"


def run_of(status: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": "frr_1",
        "object": "reporting.report_run",
        "report_type": REQUEST.report_type,
        "status": status,
        "result": None,
        "parameters": {"timezone": "Etc/UTC"},
        **changes,
    }


RUN = ReportRun("frr_1", REQUEST.report_type, "succeeded", "file_1", {"timezone": "Etc/UTC"})


def test_a_report_is_requested_with_its_columns() -> None:
    """The columns are always named: the default of Stripe changes, and has personal data."""
    transport = ScriptedTransport()
    transport.script(CREATE, run_of("pending"))
    run = asyncio.run(StripeReports(api_of(transport)).request(REQUEST))
    assert isinstance(run, ReportRun)
    assert (run.status, run.file_id) == ("pending", "")
    (sent,) = transport.requests
    assert sent.key == "dev-report-1"
    assert sent.values == {
        "report_type": "payout_reconciliation.itemized.7",
        "parameters[columns][0]": "automatic_payout_id",
        "parameters[columns][1]": "net",
        "parameters[interval_start]": "1793491200",
        "parameters[interval_end]": "1796083200",
    }
    for columns in ((), ("net", "customer_email")):
        request = ReportRequest("dev-report-2", REQUEST.report_type, columns)
        with pytest.raises(ValueError, match="columns must be named"):
            asyncio.run(StripeReports(api_of(transport)).request(request))


def test_a_report_is_polled_until_it_has_a_file() -> None:
    """A run that has ended names its file, and the parameters that Stripe has used."""
    transport = ScriptedTransport()
    result = {"id": "file_1", "url": "https://elsewhere.invalid/file_1"}
    transport.script(READ, run_of("pending"), run_of("succeeded", result=result))
    reports = StripeReports(api_of(transport))
    pending = asyncio.run(reports.poll("frr_1"))
    assert isinstance(pending, ReportRun)
    assert pending.status == "pending"
    assert asyncio.run(reports.poll("frr_1")) == RUN
    for answer in (run_of("done"), run_of("succeeded", result={"id": "../secrets"}), {}):
        transport.script(READ, answer)
        assert isinstance(asyncio.run(reports.poll("frr_1")), Unknown)
    transport.script(READ, error(404, "invalid_request_error", "resource_missing"))
    outcome = asyncio.run(reports.poll("frr_1"))
    assert isinstance(outcome, Unknown)
    assert outcome.retry_reason is RetryReason.REJECTED
    transport.script(READ, NotConnected("no server"))
    assert isinstance(asyncio.run(reports.poll("frr_1")), NotSent)


def download(transport: ScriptedTransport, run: ReportRun = RUN, max_bytes: int = 100) -> bytes:
    async def work() -> bytes:
        reports = StripeReports(api_of(transport, files_url="https://files.invalid"))
        return b"".join([part async for part in reports.download(run, max_bytes)])

    return asyncio.run(work())


def test_a_file_is_downloaded_from_stripes_own_server() -> None:
    """Whatever address the run names: the key goes to no other server."""
    transport = ScriptedTransport()
    transport.script(FILE, Answer(body=b"id,net\n1,2.50\n"))
    assert download(transport) == b"id,net\n1,2.50\n"
    (sent,) = transport.requests
    assert sent.headers["Authorization"] == "Bearer sk_test_scripted"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=b"x" * 101),
        Answer(404, b"{}"),
        Answer(302, b""),
        NoAnswer("reset"),
        NotConnected("no server"),
    ],
)
def test_a_file_that_is_not_whole_is_none(answer: Any) -> None:
    """A file that is too long, cut or missing fails as a whole."""
    transport = ScriptedTransport()
    transport.script(FILE, answer)
    with pytest.raises(ReportFailed):
        download(transport)
    with pytest.raises(ReportFailed, match="the run has no file"):
        download(transport, ReportRun("frr_1", "x", "failed", "", {}))
