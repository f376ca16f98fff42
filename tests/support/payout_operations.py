"""Callers with roles, and their calls: decisions about payouts, dead letters and alerts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tallystick import Client, TallystickError
from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.access import Role
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tests.support.callers import settings_with_callers
from tests.support.errors import error_reason
from tests.support.platform import FAST_RETRY, ServedPlatform, eventually

CALLERS = {
    "shop": ("", {Role.TEAM, Role.PAYOUTS}),
    "other": ("", {Role.TEAM, Role.PAYOUTS}),
    "approver": ("", {Role.TEAM, Role.PAYOUTS, Role.OPERATOR}),
    "operator": ("", {Role.OPERATOR}),
}
"""The owner and the roles of each caller."""
RETRY = {
    **FAST_RETRY,
    ("", RetryReason.REJECTED): RetryPolicy(RetryStrategy.CANCEL),
    ("", RetryReason.OUTCOME_UNKNOWN): RetryPolicy(RetryStrategy.CANCEL),
}


def approval_settings(**values: Any) -> Settings:
    """Settings with these callers, approval of payouts above 100 EUR, and no cooldown."""
    values.setdefault("retry", RETRY)
    return settings_with_callers(
        CALLERS,
        worker__scan_interval=0.2,
        payout__approval_threshold={"EUR": 10_000},
        payout__destination_cooldown=0,
        **values,
    )


def approve_payout(client: Client, payout_id: str, reason: str = "checked") -> payout_pb2.Payout:
    return client.payout.ApprovePayout(
        pb.ApprovePayoutRequest(payout_id=payout_id, reason=reason)
    ).payout


def reject_payout(client: Client, payout_id: str, reason: str = "no") -> payout_pb2.Payout:
    return client.payout.RejectPayout(
        pb.RejectPayoutRequest(payout_id=payout_id, reason=reason)
    ).payout


def cancel_payout(client: Client, payout_id: str, reason: str = "no more") -> payout_pb2.Payout:
    return client.payout.CancelPayout(
        pb.CancelPayoutRequest(payout_id=payout_id, reason=reason)
    ).payout


def reused_field(call: Callable[..., object], *arguments: object) -> str:
    """The field in which a call differs from the first one with its key, from the metadata of
    IDEMPOTENCY_KEY_REUSED.
    """
    with pytest.raises(TallystickError) as error:
        call(*arguments)
    assert error_reason(error) == "IDEMPOTENCY_KEY_REUSED"
    return error.value.metadata["field"]


def wait_for_dead_letter(operator_client: Client, subject: str) -> operator_pb2.DeadLetter:
    """The open dead letter of a subject; waits until it exists."""

    def list_open() -> list[operator_pb2.DeadLetter]:
        request = operator_pb2.ListDeadLettersRequest(
            state=operator_pb2.DEAD_LETTER_STATE_OPEN, page_size=200
        )
        return [
            listed_letter
            for listed_letter in operator_client.payout.ListDeadLetters(request).dead_letters
            if listed_letter.resource_name == subject
        ]

    (open_letter,) = eventually(list_open)
    return open_letter


def close_dead_letter(
    operator_client: Client, dead_letter: operator_pb2.DeadLetter
) -> operator_pb2.DeadLetter:
    request = operator_pb2.CloseDeadLetterRequest(
        dead_letter_id=dead_letter.dead_letter_id, reason="asked them", evidence="ticket 7"
    )
    return operator_client.payout.CloseDeadLetter(request).dead_letter


def payout_alerts(
    client: Client, kind: operator_pb2.AlertKind.ValueType, payout_id: str
) -> list[operator_pb2.Alert]:
    """All alerts of a kind about a payout, newest first."""
    request = operator_pb2.ListAlertsRequest(ended=True, page_size=200)
    return [
        alert
        for alert in client.payout.ListAlerts(request).alerts
        if (alert.kind, alert.resource_name) == (kind, f"payouts/{payout_id}")
    ]


def is_alert_ended_with(platform: ServedPlatform, dead_letter: operator_pb2.DeadLetter) -> bool:
    """Whether the transaction that ended the dead letter ended its alert as well."""
    query = """
        select d.state = 'RESOLVED' and d.xmin = a.xmin from payout.dead_letter d
            join payout.alert a on a.resource_name = 'deadLetters/' || d.dead_letter_id
        where d.dead_letter_id = %s and a.end_time is not null"""
    with psycopg.connect(platform.databases.admin) as connection:
        return connection.execute(query, (dead_letter.dead_letter_id,)).fetchone() == (True,)


def wait_for_alerted_dead_letter(operator_client: Client, subject: str) -> operator_pb2.DeadLetter:
    """The open dead letter of a subject; waits until there is an alert about it."""
    letter = wait_for_dead_letter(operator_client, subject)
    alert_key = (operator_pb2.ALERT_KIND_DEAD_LETTER, f"deadLetters/{letter.dead_letter_id}")
    assert eventually(
        lambda: (
            alert_key
            in {
                (alert.kind, alert.resource_name)
                for alert in operator_client.payout.ListAlerts(
                    operator_pb2.ListAlertsRequest()
                ).alerts
            }
        )
    )
    return letter
