"""Stripe's statements: the itemized report of its payouts to the platform's bank."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta

from tallystick_core.provider.outcome import NotSent, Unknown
from tallystick_core.provider.statement_source import StatementUnavailable
from tallystick_server.providers.stripe.reports import (
    ReportFailed,
    ReportRequest,
    ReportRun,
    StripeReports,
)

COLUMNS = (
    "automatic_payout_id",
    "balance_transaction_id",
    "created_utc",
    "available_on_utc",
    "reporting_category",
    "gross",
    "fee",
    "net",
    "currency",
    "description",
    "charge_id",
    "payment_intent_id",
    "refund_id",
    "transfer_id",
    "payment_metadata[charge_id]",
    "refund_metadata[refund_id]",
    "transfer_metadata[payout_id]",
)
"""What the file has: nothing personal."""
_POLL_SECONDS = 5.0


class StripeStatements:
    """The statements of one account of Stripe. `report_type` and `single_report_type`: as
    configured, of all payouts and of one; `timeout_seconds`: how long Stripe may take to write a
    file.
    """

    def __init__(
        self,
        name: str,
        reports: StripeReports,
        report_type: str,
        single_report_type: str,
        timeout_seconds: float = 3600.0,
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        self.name = name
        self._reports = reports
        self._report_type = report_type
        self._single_report_type = single_report_type
        self._timeout_seconds = timeout_seconds
        self._poll_seconds = poll_seconds

    def fetch(self, first_day: date, last_day: date) -> AsyncIterator[bytes]:
        """The report of the payouts of these days. Raises StatementUnavailable."""
        return self._fetch(
            ReportRequest(
                f"{self.name}-statement-{self._report_type}-{first_day}-{last_day}",
                self._report_type,
                COLUMNS,
                datetime.combine(first_day, time(), UTC),
                datetime.combine(last_day + timedelta(days=1), time(), UTC),
            )
        )

    def fetch_payout(self, payout: str) -> AsyncIterator[bytes]:
        """The report of one payout, by Stripe's id. Raises StatementUnavailable."""
        return self._fetch(
            ReportRequest(
                f"{self.name}-statement-{payout}", self._single_report_type, COLUMNS, payout=payout
            )
        )

    async def _fetch(self, request: ReportRequest) -> AsyncIterator[bytes]:
        run = await self._write(request)
        try:
            async for part in self._reports.download(run):
                yield part
        except ReportFailed as error:
            raise StatementUnavailable(f"the report {run.id}: {error}") from error

    async def _write(self, request: ReportRequest) -> ReportRun:
        """The run of the report, once it has a file."""
        run = _require_run(await self._reports.request(request))
        try:
            async with asyncio.timeout(self._timeout_seconds):
                while run.status == "pending":
                    await asyncio.sleep(self._poll_seconds)
                    run = _require_run(await self._reports.poll(run.id))
        except TimeoutError:
            raise StatementUnavailable(f"the report {run.id} is not written yet") from None
        if run.status == "failed":
            raise StatementUnavailable(f"the report {run.id} failed")
        return run


def _require_run(result: ReportRun | NotSent | Unknown) -> ReportRun:
    if isinstance(result, ReportRun):
        return result
    raise StatementUnavailable(result.detail)
