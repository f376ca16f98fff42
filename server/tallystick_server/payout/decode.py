"""Requests of PayoutService as values. Parsing is validation: what comes out of here can be stored, paid and booked."""

from __future__ import annotations

from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.batch import NewBatch, parse_batch_id
from tallystick_core.caller import Caller
from tallystick_core.identifier import parse_bank_account_token, parse_id, parse_text
from tallystick_core.money import parse_amount, parse_currency
from tallystick_core.payable import PayoutTerms
from tallystick_core.payout import MAX_PAYOUTS, NewDestination, NewPayout, parse_payout_id
from tallystick_core.refusal import ApiError, ErrorReason
from tallystick_core.schedule import Interval, Weekday, parse_schedule
from tallystick_server.payout.encode import INTERVALS, STATES, WEEKDAYS
from tallystick_server.payout.schedules import ScheduleUpdate
from tallystick_server.runtime.fields import parse_expected_version, parse_time
from tallystick_storage.payout.reads import PayoutFilter

_MAX_DESCRIPTION_LENGTH = 255


def new_destination(request: pb.CreatePayoutDestinationRequest, caller: Caller) -> NewDestination:
    """A bank account to register. Raises Refused with the first field that is wrong."""
    return NewDestination(
        parse_id(request.payout_destination_id, "payout_destination_id"),
        caller.name,
        caller.owner,
        parse_id(request.seller_account, "seller_account"),
        parse_currency(request.currency),
        parse_bank_account_token(request.bank_account_token, "bank_account_token"),
        parse_text(request.description, "description", _MAX_DESCRIPTION_LENGTH),
    )


def new_payout(request: pb.CreatePayoutRequest | payout_pb2.NewPayout, caller: Caller) -> NewPayout:
    """A payout of the caller's owner; an operator's may be of any. Raises Refused with the first field that is wrong."""
    payout_id = parse_payout_id(request.payout_id)
    seller = parse_id(request.seller_account, "seller_account")
    currency = parse_currency(request.currency)
    amount = parse_amount(request.amount, currency) if request.amount else None
    destination_id = parse_optional_id(request.payout_destination_id, "payout_destination_id")
    return NewPayout(payout_id, caller.name, owner_of(caller), seller, amount, currency, destination_id)


def new_batch(request: pb.CreatePayoutBatchRequest, caller: Caller) -> NewBatch:
    """A batch, its payouts sorted by id. Raises Refused with the path of the first field that is wrong."""
    batch_id = parse_batch_id(request.payout_batch_id)
    match request.WhichOneof("content"):
        case "list":
            return NewBatch(batch_id, caller.name, owner_of(caller), _payouts(request.list, caller))
        case "run":
            try:
                seller = parse_optional_id(request.run.seller_account, "seller_account")
                currency = parse_currency(request.run.currency)
                return NewBatch(batch_id, caller.name, owner_of(caller), seller_account=seller, currency=currency)
            except ApiError as error:
                raise error.with_field_prefix("run") from None
        case _:
            raise ApiError(ErrorReason.FIELD_REQUIRED, "content is required: set list or run.", field="content")


def _payouts(payout_list: pb.PayoutList, caller: Caller) -> tuple[NewPayout, ...]:
    if not payout_list.payouts:
        raise ApiError(ErrorReason.FIELD_REQUIRED, "list.payouts must have at least one payout.", field="list.payouts")
    if len(payout_list.payouts) > MAX_PAYOUTS:
        raise ApiError(ErrorReason.TOO_MANY_ITEMS, f"list.payouts must have at most {MAX_PAYOUTS} payouts.", field="list.payouts")
    payouts: dict[str, NewPayout] = {}
    for index, new in enumerate(payout_list.payouts):
        try:
            payout = new_payout(new, caller)
        except ApiError as error:
            raise error.with_field_prefix(f"list.payouts[{index}]") from None
        if payout.payout_id in payouts:
            path = f"list.payouts[{index}].payout_id"
            raise ApiError(ErrorReason.DUPLICATE_ITEM, f"{path} stands twice in the request.", field=path)
        payouts[payout.payout_id] = payout
    return tuple(payouts[id_] for id_ in sorted(payouts))


def schedule_update(request: pb.SetPayoutScheduleRequest, caller: Caller, traceparent: str) -> ScheduleUpdate:
    """A schedule to set, with its terms if an operator sets it. Raises Refused with the first field that is wrong."""
    seller = parse_optional_id(request.seller_account, "seller_account")
    currency = parse_currency(request.currency)
    interval = Interval(INTERVALS.parse(request.interval, "interval"))
    weekday = WEEKDAYS.parse(request.weekday, "weekday", "")
    schedule = parse_schedule(interval, Weekday(weekday) if weekday else None, request.day_of_month, request.cut_off, request.time_zone)

    def parse_terms_amount(field: str) -> int:
        text: str = getattr(request, field)
        return parse_amount(text, currency, field, min_amount=0) if text else 0

    terms = PayoutTerms(parse_terms_amount("minimum_amount"), parse_terms_amount("fee"), parse_terms_amount("reserve"))
    sets_terms = caller.can_see_all
    if not sets_terms:
        forbidden_field = next((field for field in ("minimum_amount", "fee", "reserve") if getattr(request, field)), None)
        if forbidden_field is not None:
            raise ApiError(
                ErrorReason.METHOD_FORBIDDEN,
                f"{forbidden_field} must be empty: the terms of payouts are for operators to set.",
                field=forbidden_field,
            )
    expected = parse_expected_version(request)
    return ScheduleUpdate(seller, currency, schedule, request.cut_off, request.time_zone, terms, caller.name, traceparent, sets_terms, expected)


def payout_filter(request: pb.ListPayoutsRequest, owner: str | None) -> PayoutFilter:
    """Which payouts to list; `owner` None: everybody's."""
    return PayoutFilter(
        owner,
        parse_optional_id(request.seller_account, "seller_account") or None,
        STATES.parse(request.payout_state, "payout_state", "") or None,
        parse_optional_id(request.payout_batch_id, "payout_batch_id") or None,
        parse_time(request, "create_time_from"),
        parse_time(request, "create_time_until"),
    )


def owner_of(caller: Caller) -> str:
    """Whose sellers a caller pays: its owner's; "": whosever they are, for an operator."""
    return "" if caller.can_see_all else caller.owner


def parse_optional_id(text: str, field: str) -> str:
    """An id, or "". Raises FIELD_INVALID, CARD_NUMBER_REFUSED."""
    return parse_id(text, field) if text else ""
