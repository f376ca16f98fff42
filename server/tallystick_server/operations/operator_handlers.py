"""The operator RPCs of every service with operations: dead letters, alerts and webhook events."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from tallystick.error.v1 import reason_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick_core.access import Role
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.operations.dead_letter import DeadLetterCause, DeadLetterState
from tallystick_core.validation import parse_id, parse_reason_text
from tallystick_server.operations import alerts, dead_letters, webhook_handlers
from tallystick_server.operations.alerts import AlertHandlers
from tallystick_server.operations.dead_letter_commands import DeadLetters
from tallystick_server.operations.webhook_handlers import WebhookHandlers
from tallystick_server.operations.webhook_inbox import WebhookInbox
from tallystick_server.rpc.call import Access, Call
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.pagination import NEWEST_FIRST, Listing, PageToken, list_page
from tallystick_server.rpc.timestamps import parse_time
from tallystick_storage import dead_letters as dead_letter_store
from tallystick_storage.database import Database
from tallystick_storage.dead_letters import DeadLetterRow
from tallystick_storage.pagination import PageKey

B = TypeVar("B", operator_pb2.RetryDeadLettersResponse, operator_pb2.CloseDeadLettersResponse)

_OPERATOR_ROLES = frozenset({Role.OPERATOR})
ACCESS: Access = {
    "ListDeadLetters": _OPERATOR_ROLES,
    "GetDeadLetter": _OPERATOR_ROLES,
    "RetryDeadLetter": _OPERATOR_ROLES,
    "CloseDeadLetter": _OPERATOR_ROLES,
    "RetryDeadLetters": _OPERATOR_ROLES,
    "CloseDeadLetters": _OPERATOR_ROLES,
    **alerts.ACCESS,
    **webhook_handlers.ACCESS,
}
_ERROR_REASONS = EnumNames(reason_pb2.Reason.DESCRIPTOR)
_DEAD_LETTER_ID = re.compile(r"\A[A-Za-z0-9_-]{1,100}\Z", re.ASCII)


class OperatorHandlers(AlertHandlers, WebhookHandlers):
    """Handlers only decode, await and encode."""

    def __init__(self, database: Database, service: DeadLetters, inbox: WebhookInbox) -> None:
        AlertHandlers.__init__(self, database)
        WebhookHandlers.__init__(self, database, inbox)
        self._dead_letters = service

    async def ListDeadLetters(
        self, request: operator_pb2.ListDeadLettersRequest, _call: Call
    ) -> operator_pb2.ListDeadLettersResponse:
        state = dead_letters.STATES.parse(request.state, "state", "")
        filters = _parse_filters(request.filter)._replace(
            state=DeadLetterState(state) if state else None
        )
        messages, next_page_token = await list_page(self._database, _DEAD_LETTERS, request, filters)
        return operator_pb2.ListDeadLettersResponse(
            dead_letters=messages, next_page_token=next_page_token
        )

    async def RetryDeadLetters(
        self, request: operator_pb2.RetryDeadLettersRequest, call: Call
    ) -> operator_pb2.RetryDeadLettersResponse:
        reason = parse_reason_text(request.reason, "reason")
        bulk = await self._parse_bulk_request("RetryDeadLetters", request)
        if request.dry_run:
            return await self._preview_bulk(bulk, operator_pb2.RetryDeadLettersResponse)
        page, retried_ids, has_more = await self._dead_letters.retry_many(
            bulk.filters, bulk.cursor, call.caller.name, reason
        )
        skipped = [
            _to_skipped_message(
                row, ApiError(ErrorReason.INVALID_STATE, "The dead letter is no longer open.")
            )
            for row in page
            if row.dead_letter_id not in retried_ids
        ]
        return operator_pb2.RetryDeadLettersResponse(
            matched=len(page),
            retried=len(retried_ids),
            skipped=skipped,
            counts=_count_page(page),
            next_page_token=bulk.next_token(page, has_more=has_more),
        )

    async def CloseDeadLetters(
        self, request: operator_pb2.CloseDeadLettersRequest, call: Call
    ) -> operator_pb2.CloseDeadLettersResponse:
        reason, evidence = (
            parse_reason_text(request.reason, "reason"),
            parse_reason_text(request.evidence, "evidence"),
        )
        bulk = await self._parse_bulk_request("CloseDeadLetters", request)
        if request.dry_run:
            return await self._preview_bulk(bulk, operator_pb2.CloseDeadLettersResponse)
        page, results, has_more = await self._dead_letters.close_many(
            bulk.filters, bulk.cursor, call.caller.name, reason, evidence
        )
        states = [result.state for result in results if not isinstance(result, ApiError)]
        return operator_pb2.CloseDeadLettersResponse(
            matched=len(page),
            closed=states.count(DeadLetterState.CLOSED),
            resolved=states.count(DeadLetterState.RESOLVED),
            skipped=[
                _to_skipped_message(row, result)
                for row, result in zip(page, results, strict=True)
                if isinstance(result, ApiError)
            ],
            counts=_count_page(page),
            next_page_token=bulk.next_token(page, has_more=has_more),
        )

    async def _parse_bulk_request(
        self,
        method: str,
        request: operator_pb2.RetryDeadLettersRequest | operator_pb2.CloseDeadLettersRequest,
    ) -> _BulkRequest:
        """Parses the filter and the cursor of a bulk call. Raises FIELD_REQUIRED, FIELD_INVALID,
        PAGE_TOKEN_INVALID.
        """
        filters = _parse_filters(request.filter)
        if request.all and filters != dead_letter_store.DeadLetterFilter():
            raise ApiError(
                ErrorReason.FIELD_INVALID,
                "all must be false if filter has a criterion.",
                field="all",
            )
        if not request.all and filters == dead_letter_store.DeadLetterFilter():
            raise ApiError(
                ErrorReason.FIELD_REQUIRED,
                "filter must have at least one criterion; set all for every open dead letter.",
                field="filter",
            )
        token = PageToken(method, *filters)
        cursor = token.parse(request.page_token, datetime, datetime, str)
        if cursor is None:
            now = await self._dead_letters.now()
            until_time = min(filters.until_time or now, now)
            return _BulkRequest(token, filters._replace(until_time=until_time), None)
        until_time, create_time, dead_letter_id = cursor
        return _BulkRequest(
            token, filters._replace(until_time=until_time), (create_time, dead_letter_id)
        )

    async def _preview_bulk(self, bulk: _BulkRequest, response_class: type[B]) -> B:
        """The response to a dry run: what the call would apply to."""
        counts, sample = await self._dead_letters.preview(bulk.filters)
        return response_class(
            matched=sum(row.dead_letter_count for row in counts),
            counts=_to_count_messages(
                (row.cause, row.provider, row.dead_letter_count) for row in counts
            ),
            sample=sample,
        )

    async def RetryDeadLetter(
        self, request: operator_pb2.RetryDeadLetterRequest, call: Call
    ) -> operator_pb2.RetryDeadLetterResponse:
        reason = parse_reason_text(request.reason, "reason")
        row, replayed = await self._dead_letters.retry(
            parse_dead_letter_id(request.dead_letter_id), call.caller.name, reason
        )
        if replayed:
            call.mark_replayed()
        return operator_pb2.RetryDeadLetterResponse(dead_letter=dead_letters.to_message(row))

    async def CloseDeadLetter(
        self, request: operator_pb2.CloseDeadLetterRequest, call: Call
    ) -> operator_pb2.CloseDeadLetterResponse:
        reason, evidence = (
            parse_reason_text(request.reason, "reason"),
            parse_reason_text(request.evidence, "evidence"),
        )
        row, replayed = await self._dead_letters.close(
            parse_dead_letter_id(request.dead_letter_id), call.caller.name, reason, evidence
        )
        if replayed:
            call.mark_replayed()
        return operator_pb2.CloseDeadLetterResponse(dead_letter=dead_letters.to_message(row))


@dataclass(frozen=True, slots=True)
class _BulkRequest:
    """The dead letters of a bulk call: a filter and a cursor. `token` makes the next page token."""

    token: PageToken
    filters: dead_letter_store.DeadLetterFilter
    cursor: PageKey | None

    def next_token(self, page: Sequence[DeadLetterRow], *, has_more: bool) -> str:
        if not has_more or self.filters.until_time is None:
            return ""
        return self.token.make(self.filters.until_time, *_key_of(page[-1]))


def _parse_filters(message: operator_pb2.DeadLetterFilter) -> dead_letter_store.DeadLetterFilter:
    """Raises FIELD_INVALID."""
    cause = dead_letters.CAUSES.parse(message.cause, "filter.cause", "")
    provider = parse_id(message.provider, "filter.provider") if message.provider else None
    try:
        from_time, until_time = parse_time(message, "from_time"), parse_time(message, "until_time")
    except ApiError as error:
        raise error.with_field_prefix("filter") from None
    if from_time is not None and until_time is not None and from_time >= until_time:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "filter.until_time must be later than filter.from_time.",
            field="filter.until_time",
        )
    return dead_letter_store.DeadLetterFilter(
        cause=DeadLetterCause(cause) if cause else None,
        provider=provider,
        from_time=from_time,
        until_time=until_time,
    )


def _key_of(row: DeadLetterRow) -> PageKey:
    return row.create_time, row.dead_letter_id


_DEAD_LETTERS = Listing(
    "ListDeadLetters",
    dead_letter_store.list_dead_letters,
    NEWEST_FIRST,
    _key_of,
    dead_letters.to_message,
)


def _count_page(page: Iterable[DeadLetterRow]) -> list[operator_pb2.DeadLetterCount]:
    counts = Counter((row.cause, row.provider) for row in page)
    return _to_count_messages((*key, count) for key, count in sorted(counts.items()))


def _to_count_messages(
    counts: Iterable[tuple[str, str, int]],
) -> list[operator_pb2.DeadLetterCount]:
    """Converts counts, each with its cause and provider."""
    return [
        operator_pb2.DeadLetterCount(
            cause=dead_letters.to_cause_number(cause), provider=provider, count=count
        )
        for cause, provider, count in counts
    ]


def _to_skipped_message(row: DeadLetterRow, error: ApiError) -> operator_pb2.SkippedDeadLetter:
    return operator_pb2.SkippedDeadLetter(
        dead_letter_id=row.dead_letter_id,
        cause=dead_letters.to_cause_number(row.cause),
        error_reason=_ERROR_REASONS.number(error.reason),
        message=error.message,
    )


def parse_dead_letter_id(text: str) -> str:
    """Raises FIELD_REQUIRED, FIELD_INVALID."""
    if _DEAD_LETTER_ID.match(text) is None:
        reason = ErrorReason.FIELD_INVALID if text else ErrorReason.FIELD_REQUIRED
        raise ApiError(
            reason, "dead_letter_id must be an id of ListDeadLetters.", field="dead_letter_id"
        )
    return text
