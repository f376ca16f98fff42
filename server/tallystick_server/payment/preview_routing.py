"""PreviewRouting: the facts of a hypothetical charge, and the decision about it as a message."""

from __future__ import annotations

from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.access import Caller
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.money import parse_amount, parse_currency
from tallystick_core.payment.checkout import MAX_ORDERS, MethodType
from tallystick_core.payment.routing import ChargeFacts, RoutingDecision
from tallystick_core.validation import parse_country, parse_id, parse_optional_id
from tallystick_server.payment import convert


def parse_charge_facts(request: pb.PreviewRoutingRequest, caller: Caller) -> ChargeFacts:
    """Parses a PreviewRouting call. Raises ApiError with the path of the first invalid field."""
    currency = parse_currency(request.currency)
    amount = parse_amount(request.amount, currency)
    country = parse_country(request.buyer_country, "buyer_country")
    method = convert.METHOD_TYPES.parse(
        request.payment_method_type, "payment_method_type", MethodType.CARD
    )
    if len(request.seller_accounts) > MAX_ORDERS:
        raise ApiError(
            ErrorReason.TOO_MANY_ITEMS,
            f"seller_accounts must have at most {MAX_ORDERS} accounts.",
            field="seller_accounts",
        )
    sellers = frozenset(
        parse_id(account, f"seller_accounts[{index}]")
        for index, account in enumerate(request.seller_accounts)
    )
    checkout_id = parse_optional_id(request.checkout_id, "checkout_id")
    caller_name = parse_optional_id(request.caller, "caller") or caller.name
    if caller_name != caller.name and not caller.can_see_all:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "caller must be empty or the caller of this call; only an operator may name another.",
            field="caller",
        )
    return ChargeFacts(
        checkout_id, caller_name, currency, amount, country, MethodType(method), sellers
    )


def to_response(decision: RoutingDecision) -> pb.PreviewRoutingResponse:
    return pb.PreviewRoutingResponse(
        provider=decision.provider,
        fallback_provider=decision.fallback,
        routing_rule=decision.rule,
        routing_reason=decision.reason,
        skipped_rules=[
            pb.SkippedRoutingRule(routing_rule=skipped.rule, reason=skipped.reason)
            for skipped in decision.skipped
        ],
    )
