"""Stripe's reports: a run is requested, polled, and its file is downloaded as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import stripe

from tallystick_core.provider.outcome import NotSent, Unknown
from tallystick_server.providers.stripe.client import Answer, StripeApi
from tallystick_server.providers.stripe.errors import NotConnected, Rejection, to_unknown
from tallystick_server.providers.stripe.json_fields import (
    read_optional_table,
    read_optional_text,
    read_text,
    require_kind,
)

if TYPE_CHECKING:
    from stripe.params.reporting import ReportRunCreateParamsParameters

MAX_REPORT_BYTES = 1024 * 1024 * 1024
"""About seven million lines."""


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """A report that Stripe is asked for. `key` is the idempotency key. Columns that would hold
    personal data (`customer_…`) are not asked for.
    """

    key: str
    report_type: str
    columns: Sequence[str]
    """The columns of the file, in order."""
    begin_time: datetime | None = None
    """The first moment that it covers; None: it covers one payout."""
    end_time: datetime | None = None
    """The first moment after it."""
    payout: str = ""
    """Stripe's id of the only payout that it covers; "": all."""


@dataclass(frozen=True, slots=True)
class ReportRun:
    """A run of a report."""

    id: str
    report_type: str
    status: str
    """pending, succeeded or failed."""
    file_id: str
    """"": there is no file yet."""
    parameters: Mapping[str, Any]
    """As Stripe has used them; the file's times have no zone but `timezone`."""


class ReportFailed(Exception):
    """A report cannot be downloaded as a whole. Nothing of it may be used."""


class StripeReports:
    """The reports of one account of Stripe."""

    def __init__(self, api: StripeApi) -> None:
        self._api = api

    async def request(self, report: ReportRequest) -> ReportRun | NotSent | Unknown:
        """Requests a run, or finds the earlier one with the same key. Raises ValueError if no
        columns are asked for, or columns with personal data.
        """
        if not report.columns or any(name.startswith("customer_") for name in report.columns):
            raise ValueError("columns must be named, none of them customer_*")
        return _without_rejection(
            await self._api.call(
                self._api.v1.reporting.report_runs.create_async(
                    {"report_type": report.report_type, "parameters": _parameters(report)},
                    {"idempotency_key": report.key},
                ),
                parse_report_run,
            )
        )

    async def poll(self, run_id: str) -> ReportRun | NotSent | Unknown:
        """The run as it is now. It takes minutes, for a large report hours."""
        return _without_rejection(
            await self._api.call(
                self._api.v1.reporting.report_runs.retrieve_async(run_id), parse_report_run
            )
        )

    async def download(
        self, run: ReportRun, max_bytes: int = MAX_REPORT_BYTES
    ) -> AsyncIterator[bytes]:
        """The parts of the file of a run. Raises ReportFailed if there is none, if it is longer
        than `max_bytes`, or if it is cut.
        """
        if not run.file_id:
            raise ReportFailed("the run has no file")
        try:
            async for part in self._api.download_file(run.file_id, max_bytes):
                yield part
        except NotConnected as error:
            raise ReportFailed("no connection to Stripe") from error
        except stripe.StripeError as error:
            raise ReportFailed(f"the file cannot be read: {type(error).__name__}") from error


def _parameters(report: ReportRequest) -> ReportRunCreateParamsParameters:
    parameters: ReportRunCreateParamsParameters = {"columns": list(report.columns)}
    if report.begin_time is not None:
        parameters["interval_start"] = int(report.begin_time.timestamp())
    if report.end_time is not None:
        parameters["interval_end"] = int(report.end_time.timestamp())
    if report.payout:
        parameters["payout"] = report.payout
    return parameters


def _without_rejection(
    result: ReportRun | Rejection | NotSent | Unknown,
) -> ReportRun | NotSent | Unknown:
    return to_unknown(result) if isinstance(result, Rejection) else result


def parse_report_run(answer: Answer) -> ReportRun:
    """Reads a run. Raises ValueError if it is none."""
    fields = answer.body
    require_kind(fields, "reporting.report_run")
    status = read_text(fields, "status")
    if status not in ("pending", "succeeded", "failed"):
        raise ValueError("an unknown status")
    file_id = read_optional_text(read_optional_table(fields, "result"), "id")
    if not file_id.replace("_", "").isalnum() and file_id:
        raise ValueError("the id of the file is invalid")
    return ReportRun(
        read_text(fields, "id"),
        read_text(fields, "report_type"),
        status,
        file_id,
        read_optional_table(fields, "parameters"),
    )
