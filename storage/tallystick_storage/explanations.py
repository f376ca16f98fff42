"""Reads for explanations: what is stored about operations in every schema that calls providers.

Each read is bounded. A read of `limit` rows reads one more, so that its caller can tell whether
some are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from tallystick_core.operations.kind import KindName
from tallystick_storage.dead_letters import DeadLetterRow
from tallystick_storage.sql import Connection, Query
from tallystick_storage.webhook_events import WebhookEventRow


class OperationRow(NamedTuple):
    """A queued operation. `next_try_time` None: a dead letter, or it waits for an approval;
    `lease_until` None: no process holds it.
    """

    operation_id: str
    provider: str
    next_try_time: datetime | None
    lease_until: datetime | None
    maybe_sent: bool
    retry_reason: str
    retry_counts: dict[str, int]
    detail: str
    expire_time: datetime | None


class ExplainedAttemptRow(NamedTuple):
    """An attempt with everything that is stored of it; fees in minor units."""

    operation_id: str
    attempt_number: int
    provider: str
    provider_key: str
    outcome: str
    provider_reference: str
    failure_reason: str
    decline_code: str
    provider_fee: int | None
    provider_fee_currency: str | None
    routing_rule: str
    routing_reason: str
    fallback_provider: str
    provider_request_id: str
    start_time: datetime
    end_time: datetime | None


class AlertRow(NamedTuple):
    alert_id: str
    kind: str
    resource_name: str
    detail: str
    create_time: datetime
    end_time: datetime | None


_LIST_OPERATIONS = Query(
    OperationRow,
    """
    select operation_id, provider, nullif(next_try_time, 'infinity'),
        case when is_leased and lease_until > (select clock()) then lease_until end,
        maybe_sent, retry_reason, retry_counts, detail, expire_time
    from operation where kind = :kind and operation_id = any (cast(:ids as text[]))
    """,
)
_LIST_ATTEMPTS = Query(
    ExplainedAttemptRow,
    """
    select {columns} from attempt
    where kind = :kind and operation_id = any (cast(:ids as text[]))
    order by operation_id, attempt_number limit :limit + 1
    """,
)
_LIST_DEAD_LETTERS = Query(
    DeadLetterRow,
    """
    select {columns} from dead_letter
    where kind = :kind and operation_id = any (cast(:ids as text[]))
    order by create_time desc, dead_letter_id desc limit :limit + 1
    """,
)
_LIST_WEBHOOK_EVENTS = Query(
    WebhookEventRow,
    """
    select {columns} from (
        select {columns} from webhook_event
        where reference <> '' and reference = any (cast(:references as text[]))
        union all
        select {columns} from webhook_event
        where reference = '' and client_reference <> ''
            and client_reference = any (cast(:ids as text[]))) e
    order by receive_time desc, webhook_event_id desc limit :limit + 1
    """,
)
# The kinds are listed because the index of alerts begins with them.
_LIST_ALERTS = Query(
    AlertRow,
    """
    select {columns} from alert where kind = any (cast(:kinds as text[]))
        and resource_name = any (cast(:names as text[]))
    order by create_time desc, alert_id desc limit :limit + 1
    """,
)


def list_operations(
    connection: Connection, kind: KindName, operation_ids: Sequence[str]
) -> dict[str, OperationRow]:
    """The queued operations of a kind, by id."""
    rows = _LIST_OPERATIONS.all(connection, kind=kind, ids=list(operation_ids))
    return {row.operation_id: row for row in rows}


def list_attempts(
    connection: Connection, kind: KindName, operation_ids: Sequence[str], limit: int
) -> list[ExplainedAttemptRow]:
    """The attempts of operations of a kind, by operation, oldest first."""
    return _LIST_ATTEMPTS.all(connection, kind=kind, ids=list(operation_ids), limit=limit)


def list_dead_letters(
    connection: Connection, kind: KindName, operation_ids: Sequence[str], limit: int
) -> list[DeadLetterRow]:
    """The dead letters of operations of a kind, newest first."""
    return _LIST_DEAD_LETTERS.all(connection, kind=kind, ids=list(operation_ids), limit=limit)


def list_webhook_events(
    connection: Connection, references: Sequence[str], operation_ids: Sequence[str], limit: int
) -> list[WebhookEventRow]:
    """The webhook events about these ids of providers, and those without one that name an
    operation; newest first.
    """
    return _LIST_WEBHOOK_EVENTS.all(
        connection, references=list(references), ids=list(operation_ids), limit=limit
    )


def list_alerts(
    connection: Connection, kinds: Sequence[str], resource_names: Sequence[str], limit: int
) -> list[AlertRow]:
    """The alerts of these resources, newest first."""
    return _LIST_ALERTS.all(connection, kinds=list(kinds), names=list(resource_names), limit=limit)
