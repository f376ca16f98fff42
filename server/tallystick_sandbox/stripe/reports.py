"""Report runs: the itemised report of automatic payouts, as a file of CSV."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from tallystick_sandbox.stripe import store
from tallystick_sandbox.stripe.context import Context
from tallystick_sandbox.stripe.errors import invalid, missing
from tallystick_sandbox.stripe.money import to_major_units
from tallystick_sandbox.stripe.parameters import Parameters
from tallystick_sandbox.stripe.store import PLATFORM, ListFilter, StoredObject

TYPE = "reporting.report_run"
ITEMIZED = "payout_reconciliation.itemized"
BY_ID = "payout_reconciliation.by_id.itemized"
_REPORT_TYPE = re.compile(rf"({re.escape(ITEMIZED)}|{re.escape(BY_ID)})\.[1-9]\d?")
COLUMNS = (
    "automatic_payout_id",
    "automatic_payout_effective_at_utc",
    "automatic_payout_effective_at",
    "balance_transaction_id",
    "created_utc",
    "created",
    "available_on_utc",
    "available_on",
    "reporting_category",
    "gross",
    "fee",
    "net",
    "currency",
    "description",
    "source_id",
    "charge_id",
    "payment_intent_id",
    "refund_id",
    "transfer_id",
    "trace_id",
)
_DEFAULT_COLUMNS = COLUMNS[:13]
_METADATA_COLUMN = re.compile(r"(payment|refund|transfer)_metadata\[([^\[\]]{1,40})\]")
_METADATA_TYPES = {"payment": "charge", "refund": "refund", "transfer": "transfer"}
_MAX_COLUMNS = 100
_MAX_PAYOUTS, _MAX_ROWS = 1_000, 10_000


class _TooManyRows(Exception):
    """The report has more rows than the sandbox writes."""


def create(context: Context, parameters: Parameters) -> dict[str, Any]:
    report_type = parameters.text("report_type", required=True)
    values = parameters.object("parameters")
    parameters.reject_unknown()
    if not _REPORT_TYPE.fullmatch(report_type):
        raise invalid(
            f"Unknown report type: {report_type[:100]}. The look-alike has {ITEMIZED}.N and "
            f"{BY_ID}.N.",
            "report_type",
        )
    run = context.create(
        "frr",
        TYPE,
        {
            "error": None,
            "parameters": _read_parameters(context, values or Parameters({}), report_type),
            "report_type": report_type,
            "result": None,
            "status": "pending",
            "succeeded_at": None,
        },
        due_in_seconds=context.rules.report_seconds,
    )
    return run.body


def _read_parameters(context: Context, values: Parameters, report_type: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "columns": values.texts("columns", _MAX_COLUMNS),
        "timezone": values.text("timezone"),
        "currency": values.text("currency").lower(),
    }
    if report_type.startswith(BY_ID):
        found["payout"] = values.text("payout", required=True)
        payout = context.load("payout", found["payout"], param="parameters[payout]")
        if not payout.body["automatic"]:
            raise invalid("Only automatic payouts have an itemised report.", "parameters[payout]")
    else:
        found["interval_start"] = values.required_integer("interval_start")
        found["interval_end"] = values.required_integer("interval_end")
    values.reject_unknown()
    for column in found["columns"]:
        if column not in COLUMNS and not _METADATA_COLUMN.fullmatch(column):
            raise invalid(f"Unknown column: {column[:100]}", "parameters[columns]")
    _zone(found["timezone"])
    return {name: value for name, value in found.items() if value not in ("", [])}


def _zone(name: str) -> tzinfo:
    if not name or name == "Etc/UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # KeyError: ZoneInfoNotFoundError
        raise invalid(f"Unknown time zone: {name[:50]}", "parameters[timezone]") from None


def retrieve(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    parameters.reject_unknown()
    return context.load(TYPE, id_).body


def advance(context: Context, run: StoredObject) -> None:
    """Writes the file of a run."""
    context.schedule(run, None)
    context.save(run)
    try:
        content = _write(context, run.body["parameters"])
    except _TooManyRows:
        fail(context, run, f"The report has more than {_MAX_ROWS} rows.")
        return
    file = _create_file(context, run, content)
    run.body |= {"status": "succeeded", "succeeded_at": context.timestamp, "result": file.body}
    context.emit("reporting.report_run.succeeded", run)


def fail(context: Context, run: StoredObject, error: str) -> None:
    """The run ends without a file."""
    context.schedule(run, None)
    context.save(run)
    run.body |= {"status": "failed", "error": error}
    context.emit("reporting.report_run.failed", run)


def _create_file(context: Context, run: StoredObject, content: str) -> StoredObject:
    file = context.create(
        "file",
        "file",
        {
            "expires_at": None,
            "filename": f"{run.id}.csv",
            "links": {"object": "list", "data": [], "has_more": False, "url": "/v1/file_links"},
            "purpose": "finance_report_run",
            "size": len(content.encode()),
            "title": f"FinanceReportRun {run.id}",
            "type": "csv",
        },
        account=run.account,
        plan={"content": content},
    )
    file.body["url"] = f"{context.rules.files_url}/v1/files/{file.id}/contents"
    return file


def retrieve_file(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    parameters.reject_unknown()
    return context.load("file", id_).body


def file_contents(context: Context, parameters: Parameters, id_: str) -> bytes:
    parameters.reject_unknown()
    file = context.load("file", id_)
    content = file.plan.get("content")
    if not isinstance(content, str):
        raise missing("file", id_)
    return content.encode()


@dataclass(frozen=True, slots=True)
class _Row:
    """A balance transaction of an automatic payout, and the object that it is about."""

    payout: dict[str, Any]
    transaction: dict[str, Any]
    source: dict[str, Any]
    zone: tzinfo


def _write(context: Context, parameters: dict[str, Any]) -> str:
    columns = parameters.get("columns") or _DEFAULT_COLUMNS
    zone = _zone(parameters.get("timezone", ""))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    row_count = 0
    for payout in _payouts(context, parameters):
        transactions = _transactions_of(context, payout)
        row_count += len(transactions)
        if row_count > _MAX_ROWS:
            raise _TooManyRows
        sources = _sources_of(context, transactions)
        for item in transactions:
            source = sources.get(item.body["source"], {})
            row = _Row(payout.body, item.body, source, zone)
            writer.writerow([_cell(row, column) for column in columns])
    return text.getvalue()


def _payouts(context: Context, parameters: dict[str, Any]) -> list[StoredObject]:
    """The automatic payouts of a report, the newest first."""
    if "payout" in parameters:
        found = [context.load("payout", parameters["payout"], account=PLATFORM)]
    else:
        list_filter = ListFilter(
            PLATFORM,
            "payout",
            {"automatic": True},
            _MAX_PAYOUTS,
            (parameters["interval_start"], parameters["interval_end"] - 1),
        )
        found = store.list_objects(context.connection, list_filter)
    currency = parameters.get("currency")
    return [payout for payout in found if not currency or payout.body["currency"] == currency]


def _transactions_of(context: Context, payout: StoredObject) -> list[StoredObject]:
    """What a payout pays. It is no row itself, though the list of balance transactions has it."""
    list_filter = ListFilter(
        PLATFORM, "balance_transaction", {}, _MAX_ROWS + 2, plan={"payout": payout.id}
    )
    found = store.list_objects(context.connection, list_filter)
    return [item for item in found if item.body["source"] != payout.id]


def _sources_of(context: Context, transactions: list[StoredObject]) -> dict[str, dict[str, Any]]:
    ids = [item.body["source"] for item in transactions]
    return {item.id: item.body for item in store.find_objects(context.connection, ids)}


def _cell(row: _Row, column: str) -> str:
    """The text of a column. Amounts are in major units, times without their zone."""
    transaction, currency = row.transaction, row.transaction["currency"]
    match column:
        case "gross" | "fee" | "net":
            amount = transaction["amount" if column == "gross" else column]
            return to_major_units(amount, currency)
        case "created" | "available_on":
            return _time(transaction[column], row.zone)
        case "created_utc" | "available_on_utc":
            return _time(transaction[column.removesuffix("_utc")], UTC)
        case "automatic_payout_effective_at":
            return _time(row.payout["arrival_date"], row.zone)
        case "automatic_payout_effective_at_utc":
            return _time(row.payout["arrival_date"], UTC)
        case _:
            return _id_or_text(row, column)


def _id_or_text(row: _Row, column: str) -> str:
    """Ids, texts, and metadata of the object."""
    source = row.source
    match = _METADATA_COLUMN.fullmatch(column)
    if match is not None:
        has_it = source.get("object") == _METADATA_TYPES[match[1]]
        return str(source["metadata"].get(match[2], "")) if has_it else ""
    by_type = {"charge_id": "charge", "refund_id": "refund", "transfer_id": "transfer"}
    if column in by_type:
        type_ = by_type[column]
        return str(source["id"] if source.get("object") == type_ else source.get(type_) or "")
    values = {
        "automatic_payout_id": row.payout["id"],
        "balance_transaction_id": row.transaction["id"],
        "source_id": row.transaction["source"],
        "payment_intent_id": source.get("payment_intent"),
        "trace_id": row.payout["trace_id"],
    }
    value = values[column] if column in values else row.transaction[column]
    return str(value or "")


def _time(timestamp: int, zone: tzinfo) -> str:
    return datetime.fromtimestamp(timestamp, zone).strftime("%Y-%m-%d %H:%M:%S")
