"""Converts PayoutService messages: requests into validated values, stored rows into messages.

The values that `parse_` functions return can be stored, paid and booked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from google.rpc import status_pb2

from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.access import Caller
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.money import format_amount, parse_amount, parse_currency
from tallystick_core.payout.batch import NewBatch, parse_batch_id
from tallystick_core.payout.destination import NewDestination
from tallystick_core.payout.quote import PayoutTerms
from tallystick_core.payout.request import MAX_PAYOUTS, NewPayout, parse_payout_id
from tallystick_core.payout.schedule import Interval, Weekday, parse_schedule
from tallystick_core.payout.snapshot import PayoutSnapshot
from tallystick_core.validation import (
    parse_bank_account_token,
    parse_id,
    parse_items,
    parse_optional_id,
    parse_text,
)
from tallystick_server.operations.history import acknowledgement_fields
from tallystick_server.payout.schedules import ScheduleUpdate
from tallystick_server.payout.snapshot import snapshot_of
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.timestamps import parse_time, to_optional_timestamp, to_timestamp
from tallystick_server.rpc.versions import parse_expected_version
from tallystick_storage.payout import payouts as store
from tallystick_storage.payout.batches import BatchRow, BatchTotalRow, ReportItemRow
from tallystick_storage.payout.destinations import DestinationRow
from tallystick_storage.payout.queries import PayoutFilter, ScheduledPayoutRow
from tallystick_storage.payout.schedules import ScheduleRow
from tallystick_storage.payout.transfers import TransferRow

_MAX_DESCRIPTION_LENGTH = 255


def parse_destination(request: pb.CreatePayoutDestinationRequest, caller: Caller) -> NewDestination:
    """Parses a bank account to register. Raises ApiError with the first invalid field."""
    return NewDestination(
        parse_id(request.payout_destination_id, "payout_destination_id"),
        caller.name,
        caller.owner,
        parse_id(request.seller_account, "seller_account"),
        parse_currency(request.currency),
        parse_bank_account_token(request.bank_account_token, "bank_account_token"),
        parse_text(request.description, "description", _MAX_DESCRIPTION_LENGTH),
    )


def parse_payout(
    request: pb.CreatePayoutRequest | payout_pb2.NewPayout, caller: Caller
) -> NewPayout:
    """Parses a payout of the caller's owner; an operator may name any owner's seller.

    Raises ApiError with the first invalid field.
    """
    payout_id = parse_payout_id(request.payout_id)
    seller = parse_id(request.seller_account, "seller_account")
    currency = parse_currency(request.currency)
    amount = parse_amount(request.amount, currency) if request.amount else None
    destination_id = parse_optional_id(request.payout_destination_id, "payout_destination_id")
    return NewPayout(
        payout_id, caller.name, parse_owner(caller), seller, amount, currency, destination_id
    )


def parse_batch(request: pb.CreatePayoutBatchRequest, caller: Caller) -> NewBatch:
    """Parses a batch; its payouts are sorted by id.

    Raises ApiError with the path of the first invalid field.
    """
    batch_id = parse_batch_id(request.payout_batch_id)
    match request.WhichOneof("content"):
        case "list":
            return NewBatch(
                batch_id, caller.name, parse_owner(caller), _payouts(request.list, caller)
            )
        case "run":
            try:
                seller = parse_optional_id(request.run.seller_account, "seller_account")
                currency = parse_currency(request.run.currency)
                return NewBatch(
                    batch_id,
                    caller.name,
                    parse_owner(caller),
                    seller_account=seller,
                    currency=currency,
                )
            except ApiError as error:
                raise error.with_field_prefix("run") from None
        case _:
            raise ApiError(
                ErrorReason.FIELD_REQUIRED, "content is required: set list or run.", field="content"
            )


def _payouts(payout_list: pb.PayoutList, caller: Caller) -> tuple[NewPayout, ...]:
    payouts = parse_items(
        payout_list.payouts,
        lambda message, _: parse_payout(message, caller),
        field="list.payouts",
        item_name="payout",
        id_field="payout_id",
        max_items=MAX_PAYOUTS,
    )
    return tuple(sorted(payouts, key=lambda payout: payout.payout_id))


def parse_schedule_update(
    request: pb.SetPayoutScheduleRequest, caller: Caller, traceparent: str
) -> ScheduleUpdate:
    """Parses a schedule to set, including its terms if an operator sets it.

    Raises ApiError with the first invalid field.
    """
    seller = parse_optional_id(request.seller_account, "seller_account")
    currency = parse_currency(request.currency)
    interval = Interval(INTERVALS.parse(request.interval, "interval"))
    weekday = WEEKDAYS.parse(request.weekday, "weekday", "")
    schedule = parse_schedule(
        interval,
        Weekday(weekday) if weekday else None,
        request.day_of_month,
        request.cut_off,
        request.time_zone,
    )

    def parse_terms_amount(field: str) -> int:
        text: str = getattr(request, field)
        return parse_amount(text, currency, field, min_amount=0) if text else 0

    terms = PayoutTerms(
        parse_terms_amount("minimum_amount"),
        parse_terms_amount("fee"),
        parse_terms_amount("reserve"),
    )
    has_own_terms = caller.can_see_all
    if not has_own_terms:
        forbidden_field = next(
            (field for field in ("minimum_amount", "fee", "reserve") if getattr(request, field)),
            None,
        )
        if forbidden_field is not None:
            raise ApiError(
                ErrorReason.PERMISSION_DENIED,
                f"{forbidden_field} must be empty: only operators set the terms of payouts.",
                field=forbidden_field,
            )
    expected = parse_expected_version(request)
    return ScheduleUpdate(
        seller,
        currency,
        schedule,
        request.cut_off,
        request.time_zone,
        terms,
        caller.name,
        traceparent,
        has_own_terms,
        expected,
    )


def parse_payout_filter(request: pb.ListPayoutsRequest, owner: str | None) -> PayoutFilter:
    """The filter of a payout list; `owner` None: payouts of all owners."""
    return PayoutFilter(
        owner,
        parse_optional_id(request.seller_account, "seller_account") or None,
        STATES.parse(request.payout_state, "payout_state", "") or None,
        parse_optional_id(request.payout_batch_id, "payout_batch_id") or None,
        parse_time(request, "create_time_from"),
        parse_time(request, "create_time_until"),
    )


def parse_owner(caller: Caller) -> str:
    """The owner whose sellers the caller pays; "" for an operator: any owner."""
    return "" if caller.can_see_all else caller.owner


STATES = EnumNames(payout_pb2.PayoutState.DESCRIPTOR)
DESTINATION_STATES = EnumNames(payout_pb2.PayoutDestinationState.DESCRIPTOR)
BATCH_STATES = EnumNames(payout_pb2.PayoutBatchState.DESCRIPTOR)
INTERVALS = EnumNames(payout_pb2.PayoutInterval.DESCRIPTOR)
WEEKDAYS = EnumNames(payout_pb2.Weekday.DESCRIPTOR)
_FAILURE_REASONS = EnumNames(payout_pb2.PayoutFailureReason.DESCRIPTOR)
_TRANSFER_MATCHES = EnumNames(payout_pb2.TransferMatch.DESCRIPTOR)


def new_payout(new: store.NewPayoutRow, create_time: datetime) -> payout_pb2.Payout:
    """A new payout as it is stored."""
    return _payout(new, PayoutSnapshot(), create_time, create_time)


def payout(row: store.PayoutRow) -> payout_pb2.Payout:
    """A stored payout, without its next_try_time."""
    return _payout(row, snapshot_of(row), row.create_time, row.update_time)


def payout_with_schedule(row: ScheduledPayoutRow) -> payout_pb2.Payout:
    """The current payout, with its next_try_time."""
    message = payout(row)
    if row.next_try_time is not None:
        message.next_try_time.CopyFrom(to_timestamp(row.next_try_time))
    return message


def _payout(
    source: store.PayoutRow | store.NewPayoutRow,
    snapshot: PayoutSnapshot,
    create_time: datetime,
    update_time: datetime,
) -> payout_pb2.Payout:
    message = payout_pb2.Payout(
        payout_id=source.payout_id,
        seller_account=source.seller_account,
        amount=format_amount(source.amount, source.currency),
        currency=source.currency,
        fee=format_amount(source.fee, source.currency),
        net_amount=format_amount(source.amount - source.fee, source.currency),
        payout_destination_id=source.payout_destination_id,
        payout_batch_id=source.payout_batch_id,
        provider=source.provider,
        caller=source.caller,
        owner=source.owner,
        create_time=to_timestamp(create_time),
    )
    apply_snapshot(message, snapshot, update_time)
    return message


def apply_snapshot(
    message: payout_pb2.Payout, snapshot: PayoutSnapshot, update_time: datetime
) -> None:
    """Applies a snapshot to the message of a payout."""
    message.payout_state = STATES.number(snapshot.state)
    message.wallet_updated = message.ledger_updated = snapshot.booked
    message.failure_reason = _FAILURE_REASONS.number(snapshot.failure_reason)
    message.decline_code = snapshot.decline_code
    message.provider_reference = snapshot.provider_reference
    message.attempt_count = snapshot.attempt_count
    message.paid_amount = format_amount(snapshot.paid_amount, message.currency)
    message.returned_amount = format_amount(snapshot.returned_amount, message.currency)
    message.version = snapshot.version
    message.update_time.CopyFrom(to_timestamp(update_time))


def destination(row: DestinationRow) -> payout_pb2.PayoutDestination:
    return payout_pb2.PayoutDestination(
        payout_destination_id=row.payout_destination_id,
        seller_account=row.seller_account,
        currency=row.currency,
        description=row.description,
        state=DESTINATION_STATES.number(row.state),
        usable_time=to_timestamp(row.usable_time),
        decline_code=row.decline_code,
        provider=row.provider,
        caller=row.caller,
        owner=row.owner,
        awaits_approval=row.awaits_approval,
        approved_by=row.approved_by,
        version=row.version,
        create_time=to_timestamp(row.create_time),
        update_time=to_timestamp(row.update_time),
    )


def transfers(rows: Iterable[TransferRow]) -> list[payout_pb2.PayoutTransfer]:
    return [
        payout_pb2.PayoutTransfer(
            provider=row.provider,
            provider_reference=row.provider_reference,
            match=_TRANSFER_MATCHES.number(row.match),
            amount=format_amount(row.amount, row.currency),
            currency=row.currency,
            returned_amount=""
            if row.returned_amount is None
            else format_amount(row.returned_amount, row.returned_currency),
            returned_currency=row.returned_currency,
            create_time=to_timestamp(row.create_time),
            return_time=to_optional_timestamp(row.return_time),
            **acknowledgement_fields(row),
        )
        for row in rows
    ]


def schedule(row: ScheduleRow) -> payout_pb2.PayoutSchedule:
    def amount(minor: int) -> str:
        return format_amount(minor, row.currency)

    return payout_pb2.PayoutSchedule(
        seller_account=row.seller_account,
        currency=row.currency,
        interval=INTERVALS.number(row.interval),
        weekday=WEEKDAYS.number(row.weekday),
        day_of_month=row.day_of_month,
        cut_off=row.cut_off,
        time_zone=row.time_zone,
        minimum_amount=amount(row.minimum_amount),
        fee=amount(row.fee),
        reserve=amount(row.reserve),
        next_time=to_optional_timestamp(row.next_time),
        caller=row.caller,
        own_terms=row.has_own_terms,
        version=row.version,
        update_time=to_timestamp(row.update_time),
    )


def batch(row: BatchRow, totals: Sequence[BatchTotalRow] = ()) -> payout_pb2.PayoutBatch:
    """A batch, with its totals if they are requested."""
    message = payout_pb2.PayoutBatch(
        payout_batch_id=row.payout_batch_id,
        state=BATCH_STATES.number(row.state),
        item_count=row.item_count,
        generated_count=row.generated_count,
        rejected_count=row.rejected_count,
        skipped_count=row.skipped_count,
        totals=[_total(total) for total in totals],
        caller=row.caller,
        owner=row.owner,
        version=row.version,
        create_time=to_timestamp(row.create_time),
        update_time=to_timestamp(row.update_time),
        done_time=to_optional_timestamp(row.done_time),
    )
    if row.is_run:
        message.run.seller_account, message.run.currency = row.seller_account, row.currency
        if row.cut_off_time:
            message.run.cut_off_time.CopyFrom(to_timestamp(row.cut_off_time))
    return message


def _total(row: BatchTotalRow) -> payout_pb2.PayoutTotal:
    return payout_pb2.PayoutTotal(
        payout_state=STATES.number(row.state),
        currency=row.currency,
        payout_count=row.payouts,
        amount=format_amount(int(row.amount), row.currency),
        fee=format_amount(int(row.fee), row.currency),
        returned_amount=format_amount(int(row.returned_amount), row.currency),
    )


def batch_items(
    rows: Iterable[ReportItemRow], payouts: Mapping[str, ScheduledPayoutRow]
) -> list[payout_pb2.PayoutBatchItem]:
    """The lines of a batch's report, with the current payouts."""
    items = []
    for row in rows:
        item = payout_pb2.PayoutBatchItem(
            payout_id=row.payout_id, seller_account=row.seller_account
        )
        if row.error is None:
            item.payout.CopyFrom(payout_with_schedule(payouts[row.payout_id]))
        else:
            item.error.CopyFrom(status_pb2.Status.FromString(row.error))
        items.append(item)
    return items
