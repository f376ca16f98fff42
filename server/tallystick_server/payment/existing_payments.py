"""Compares new payments with stored ones: the same id is a replay or a conflict."""

from __future__ import annotations

from collections.abc import Sequence

from tallystick_core.errors import ApiError, ErrorReason, id_taken_error, key_reused_error
from tallystick_core.payment.checkout import (
    ChargeMode,
    CheckoutRequest,
    MethodType,
    Order,
    PartialFailurePolicy,
    first_difference,
)
from tallystick_core.payment.hosted_page import RequestedPage
from tallystick_storage.payment import checkouts as store
from tallystick_storage.sql import Connection


def find_conflicts(
    connection: Connection, requests: Sequence[tuple[CheckoutRequest, bytes]]
) -> dict[str, ApiError | None]:
    """Compares requests, each with its fingerprint. Returns, by checkout id, those with an id that
    exists: the conflict, or None for a replay.
    """
    checkout_ids = [request.checkout_id for request, _ in requests]
    order_ids = [order.payment_order_id for request, _ in requests for order in request.orders]
    rows = store.find_existing(connection, checkout_ids, order_ids)
    by_checkout = {row.id: row for row in rows if row.resource_type == "checkout"}
    by_order = {row.id: row for row in rows if row.resource_type == "order"}
    conflicts: dict[str, ApiError | None] = {}
    for request, fingerprint in requests:
        taken_orders = [order for order in request.orders if order.payment_order_id in by_order]
        if request.checkout_id in by_checkout:
            conflicts[request.checkout_id] = _checkout_conflict(
                connection, request, fingerprint, by_checkout[request.checkout_id]
            )
        elif taken_orders:
            conflicts[request.checkout_id] = _order_conflict(
                request, taken_orders[0], by_order[taken_orders[0].payment_order_id]
            )
    return conflicts


def _checkout_conflict(
    connection: Connection,
    request: CheckoutRequest,
    fingerprint: bytes,
    row: store.ExistingIdRow,
) -> ApiError | None:
    """The conflict with the payment that has this id; None: a replay."""
    if row.owner != request.owner:
        return id_taken_error("checkout_id")
    if row.fingerprint == fingerprint:
        return None
    rows = store.load_request(connection, row.id)
    orders = tuple(
        Order(
            r.payment_order_id,
            r.buyer_account,
            r.seller_account,
            r.amount,
            r.currency,
            r.requested_fee,
        )
        for r in rows
    )
    first = rows[0]
    stored_request = CheckoutRequest(
        checkout_id=row.id,
        caller=first.caller,
        owner=first.owner,
        buyer_info=first.buyer_info,
        seller_info=first.seller_info,
        buyer_country=first.buyer_country,
        payment_token=first.payment_token,
        payment_method_type=MethodType(first.payment_method_type),
        charge_mode=ChargeMode(first.charge_mode),
        partial_failure_policy=PartialFailurePolicy(first.partial_failure_policy),
        orders=orders,
        expire_time=first.expire_time if first.page_success_url is None else None,
        page=None
        if first.page_success_url is None
        else RequestedPage(
            first.page_success_url,
            first.page_cancel_url or "",
            first.page_expire_time,
            first.page_locale or "",
        ),
    )
    return key_reused_error(first_difference(request, stored_request))


def _order_conflict(request: CheckoutRequest, order: Order, row: store.ExistingIdRow) -> ApiError:
    """The result for an order id that belongs to another checkout."""
    path = f"payment_orders[{order.index}].payment_order_id"
    if row.owner != request.owner:
        return id_taken_error(path)
    return ApiError(
        ErrorReason.IDEMPOTENCY_KEY_REUSED,
        f"{path} belongs to another checkout.",
        field=path,
        metadata={"field": path},
    )
