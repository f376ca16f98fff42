"""Fields that the messages of payments and of payouts share, from stored rows."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol

from tallystick_core.money import format_amount
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.timestamps import to_optional_timestamp, to_timestamp
from tallystick_storage.operations import AttemptRow


class AcknowledgementFields(Protocol):
    """A row that an operator acknowledges; "" and None: nobody has."""

    @property
    def acknowledged_by(self) -> str: ...
    @property
    def acknowledge_reason(self) -> str: ...
    @property
    def acknowledge_time(self) -> datetime | None: ...


class ConflictingReportFields(AcknowledgementFields, Protocol):
    """A provider's report that contradicts a final state."""

    @property
    def number(self) -> int: ...
    @property
    def report(self) -> str: ...
    @property
    def create_time(self) -> datetime: ...


def attempt_fields(row: AttemptRow, outcomes: EnumNames) -> dict[str, Any]:
    """The fields of an attempt. `outcomes`: the names of its kind of operation."""
    return {
        "number": row.attempt_number,
        "provider": row.provider,
        "provider_key": row.provider_key,
        "outcome": outcomes.number(row.outcome),
        "provider_reference": row.provider_reference,
        "provider_fee": ""
        if row.provider_fee is None
        else format_amount(row.provider_fee, row.provider_fee_currency),
        "provider_fee_currency": row.provider_fee_currency or "",
        "start_time": to_timestamp(row.start_time),
        "end_time": to_optional_timestamp(row.end_time),
    }


def conflicting_report_fields(row: ConflictingReportFields) -> dict[str, Any]:
    """The fields of a provider's report that contradicts a final state."""
    return {
        "number": row.number,
        "report": row.report,
        "create_time": to_timestamp(row.create_time),
        **acknowledgement_fields(row),
    }


def acknowledgement_fields(row: AcknowledgementFields) -> dict[str, Any]:
    """Who acknowledged an alert's subject, why and when; empty: nobody has."""
    return {
        "acknowledged_by": row.acknowledged_by,
        "acknowledge_reason": row.acknowledge_reason,
        "acknowledge_time": to_optional_timestamp(row.acknowledge_time),
    }
