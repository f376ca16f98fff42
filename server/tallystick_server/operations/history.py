"""The messages about what happened to an order or a payout, from stored rows."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol

from tallystick.history.v1 import history_pb2
from tallystick_core.money import format_amount
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.timestamps import to_optional_timestamp, to_timestamp
from tallystick_storage.history import TransitionRow
from tallystick_storage.operations import AttemptRow

_OUTCOMES = EnumNames(history_pb2.AttemptOutcome.DESCRIPTOR)


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


def transitions(rows: Iterable[TransitionRow]) -> list[history_pb2.Transition]:
    """Raises ValueError for a reason that the contract does not have."""
    return [
        history_pb2.Transition(
            version=row.version,
            from_state=row.from_state or "",
            to_state=row.to_state,
            transition_reason=history_pb2.TransitionReason.Value(
                f"TRANSITION_REASON_{row.transition_reason}"
            ),
            actor=row.actor,
            reason=row.reason,
            create_time=to_timestamp(row.create_time),
        )
        for row in rows
    ]


def attempts(rows: Iterable[AttemptRow]) -> list[history_pb2.Attempt]:
    return [
        history_pb2.Attempt(
            number=row.attempt_number,
            provider=row.provider,
            provider_key=row.provider_key,
            routing_rule=row.routing_rule,
            routing_reason=row.routing_reason,
            outcome=_OUTCOMES.number(row.outcome),
            provider_reference=row.provider_reference,
            provider_fee=""
            if row.provider_fee is None
            else format_amount(row.provider_fee, row.provider_fee_currency),
            provider_fee_currency=row.provider_fee_currency or "",
            start_time=to_timestamp(row.start_time),
            end_time=to_optional_timestamp(row.end_time),
        )
        for row in rows
    ]


def conflicting_report(row: ConflictingReportFields) -> history_pb2.ConflictingReport:
    return history_pb2.ConflictingReport(
        number=row.number,
        report=row.report,
        create_time=to_timestamp(row.create_time),
        **acknowledgement_fields(row),
    )


def acknowledgement_fields(row: AcknowledgementFields) -> dict[str, Any]:
    """Who acknowledged an alert's subject, why and when; empty: nobody has."""
    return {
        "acknowledged_by": row.acknowledged_by,
        "acknowledge_reason": row.acknowledge_reason,
        "acknowledge_time": to_optional_timestamp(row.acknowledge_time),
    }
