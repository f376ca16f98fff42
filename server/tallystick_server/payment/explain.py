"""ExplainPayment: gathers what is stored about a payment, here and in other services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tallystick.history.v1 import explanation_pb2
from tallystick_core.errors import not_found_error
from tallystick_core.operations.alert import AlertKind
from tallystick_core.operations.explanation import ReportFacts
from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payment.checkout import ChargeMode
from tallystick_core.payment.explanation import explain
from tallystick_core.payment.explanation_facts import ChargeFacts, PaymentFacts, PollFacts
from tallystick_core.payment.state import OrderStatus
from tallystick_server.operations.explanations import (
    MAX_ROWS,
    MAX_TRANSITIONS,
    alert_facts,
    attempt_facts,
    dead_letter_facts,
    failed_try_facts,
    limit_rows,
    operation_facts,
    to_message,
    trace_id_of,
    webhook_facts,
)
from tallystick_server.operations.operation import NO_LEASE
from tallystick_server.operations.other_services import Elsewhere, OtherServices
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.payment.charge import Charge, charges_from_rows
from tallystick_server.payment.explanation_rows import (
    order_facts,
    transition_facts,
    unapplied_facts,
)
from tallystick_storage import explanations as operation_store
from tallystick_storage import failed_tries as failed_try_store
from tallystick_storage.database import Database, read_snapshot
from tallystick_storage.payment import charges as charge_store
from tallystick_storage.payment import explanations as store
from tallystick_storage.sql import Connection

MAX_ORDERS = 20
"""The maximum number of orders of an explanation."""
_ALERT_KINDS = (
    AlertKind.ORDER_STUCK,
    AlertKind.REVIEW_OVERDUE,
    AlertKind.DEAD_LETTER,
    AlertKind.UNAPPLIED_CHARGE,
    AlertKind.CHARGE_STATUS_CONFLICT,
    AlertKind.RELEASE_STUCK,
)


@dataclass(frozen=True, slots=True)
class _Gathered:
    """What PaymentService has stored, and what is left out, as sentences."""

    facts: PaymentFacts
    omissions: tuple[str, ...]
    time: datetime


class PaymentExplainer:
    """Explains payments. `next_action_of`: the next action of a charge at a loop time."""

    def __init__(
        self,
        database: Database,
        other_services: OtherServices,
        next_action_of: Callable[[Charge, float], NextAction],
        retry_policies: RetryPolicies,
        lease_seconds: float,
    ) -> None:
        self._database = database
        self._other_services = other_services
        self._next_action_of = next_action_of
        self._retry_policies = retry_policies
        self._lease_seconds = lease_seconds

    async def explain(
        self, id_: str, owner: str | None, *, for_operator: bool
    ) -> explanation_pb2.Explanation:
        """The payment that an id names, among those of an owner (None: of all). Raises NOT_FOUND.

        `for_operator`: with what only operators may read by other calls.
        """
        loop_time = asyncio.get_running_loop().time()

        def read(connection: Connection) -> _Gathered | None:
            with read_snapshot(connection):
                found = store.find_payment(connection, id_, owner)
                return found and self._gather(connection, found, loop_time, for_operator)

        gathered = await self._database.read(read)
        if gathered is None:
            raise not_found_error("payment with the id", id_)
        explanation = await self._other_services.add_to(
            explain(gathered.facts, gathered.time),
            gathered.omissions,
            _elsewhere(gathered.facts, for_operator=for_operator),
        )
        return to_message(explanation, gathered.time)

    async def find_name(self, id_: str, owner: str | None) -> str:
        """The resource name of the payment that an id names, as `explain`. Raises NOT_FOUND."""
        found = await self._database.read(
            lambda connection: store.find_payment(connection, id_, owner)
        )
        if found is None:
            raise not_found_error("payment with the id", id_)
        return f"payments/{found.checkout_id}"

    def _gather(
        self,
        connection: Connection,
        found: store.FoundPayment,
        loop_time: float,
        for_operator: bool,
    ) -> _Gathered:
        omissions: list[str] = []
        checkout = store.load_checkout(connection, found.checkout_id)
        orders = store.list_orders(connection, found, MAX_ORDERS)
        charges = self._gather_charges(
            connection, orders, checkout.now, loop_time, omissions, for_operator=for_operator
        )
        unapplied = limit_rows(
            store.list_unapplied(connection, found, MAX_ROWS), "unapplied charges", omissions
        )
        if found.charge_id is None and len(orders) < checkout.order_count:
            omissions.append(
                f"{checkout.order_count - len(orders)} of {checkout.order_count} orders are left "
                "out; explain them by their payment_order_id."
            )
        elif found.charge_id is not None and len(orders) < checkout.order_count:
            omissions.append(
                f"Only the orders of the charge {found.charge_id} are explained; explain the "
                "others by the checkout_id."
            )
        facts = PaymentFacts(
            checkout.checkout_id,
            checkout.caller,
            checkout.payment_state,
            ChargeMode(checkout.charge_mode),
            checkout.order_count,
            checkout.create_time,
            charges,
            checkout.has_page,
            checkout.expire_time,
            checkout.cancel_reason,
            checkout.done_time,
            trace_id_of(checkout.traceparent),
            tuple(unapplied_facts(row, with_details=for_operator) for row in unapplied),
        )
        if for_operator:
            facts = _with_operator_facts(connection, facts, omissions)
        return _Gathered(facts, tuple(omissions), checkout.now)

    def _gather_charges(
        self,
        connection: Connection,
        orders: Sequence[store.ExplainedOrderRow],
        now: datetime,
        loop_time: float,
        omissions: list[str],
        *,
        for_operator: bool,
    ) -> tuple[ChargeFacts, ...]:
        charge_ids = list(dict.fromkeys(order.charge_id for order in orders))
        transitions = limit_rows(
            store.list_transitions(
                connection, [order.payment_order_id for order in orders], MAX_TRANSITIONS
            ),
            "transitions",
            omissions,
            MAX_TRANSITIONS,
        )
        attempts = operation_store.list_attempts(connection, KindName.CHARGE, charge_ids, MAX_ROWS)
        operations = operation_store.list_operations(connection, KindName.CHARGE, charge_ids)
        actions = self._next_actions(connection, operations, now, loop_time)
        dead_letters = limit_rows(
            operation_store.list_dead_letters(connection, KindName.CHARGE, charge_ids, MAX_ROWS),
            "dead letters",
            omissions,
        )
        reports = limit_rows(
            store.list_reports(connection, charge_ids, MAX_ROWS), "conflicting reports", omissions
        )
        polls = store.list_polls(connection, charge_ids)
        failed_tries = limit_rows(
            failed_try_store.list_latest(connection, KindName.CHARGE, charge_ids, MAX_ROWS),
            "failed tries",
            omissions,
        )
        charge_of = {order.payment_order_id: order.charge_id for order in orders}
        return tuple(
            ChargeFacts(
                charge_id,
                tuple(order_facts(row) for row in orders if row.charge_id == charge_id),
                tuple(
                    transition_facts(row)
                    for row in reversed(transitions)
                    if charge_of[row.payment_order_id] == charge_id
                ),
                tuple(
                    attempt_facts(row, with_details=for_operator)
                    for row in attempts
                    if row.operation_id == charge_id
                ),
                operation_facts(
                    operations[charge_id],
                    actions.get(charge_id, NextAction.WAIT),
                    self._retry_policies,
                    with_details=for_operator,
                )
                if charge_id in operations
                else None,
                tuple(
                    dead_letter_facts(row, with_details=for_operator)
                    for row in dead_letters
                    if row.operation_id == charge_id
                ),
                tuple(ReportFacts(*row[1:]) for row in reports if row.charge_id == charge_id),
                tuple(
                    PollFacts(row.provider, row.next_poll_time, row.poll_count)
                    for row in polls
                    if row.charge_id == charge_id
                ),
                tuple(
                    failed_try_facts(row, with_details=for_operator)
                    for row in reversed(failed_tries)
                    if row.operation_id == charge_id
                ),
            )
            for charge_id in charge_ids
        )

    def _next_actions(
        self,
        connection: Connection,
        operations: dict[str, operation_store.OperationRow],
        now: datetime,
        loop_time: float,
    ) -> dict[str, NextAction]:
        """The next action of each queued charge at its next try."""
        if not operations:
            return {}
        selectors = [charge_store.AttemptSelector(charge_id) for charge_id in operations]
        charges = charges_from_rows(
            charge_store.find_charges(connection, selectors),
            dict.fromkeys(operations, NO_LEASE),
            loop_time,
            self._lease_seconds,
        )
        actions = {}
        for charge in charges:
            next_time = operations[charge.charge_id].next_try_time or now
            wait_seconds = max((next_time - now).total_seconds(), 0.0)
            at_next_try = replace(
                charge,
                age_seconds=charge.age_seconds + wait_seconds,
                # the wait ends at the buyer's deadline at the latest
                buyer_timed_out=charge.buyer_timed_out
                or (
                    charge.orders[0].buyer_action_seconds() < float("inf")
                    and loop_time + wait_seconds >= charge.end_deadline
                ),
            )
            actions[charge.charge_id] = self._next_action_of(at_next_try, loop_time + wait_seconds)
        return actions


def _with_operator_facts(
    connection: Connection, facts: PaymentFacts, omissions: list[str]
) -> PaymentFacts:
    """Adds what only operators may read: webhook events and alerts."""
    references = {
        attempt.provider_reference: None
        for charge in facts.charges
        for attempt in charge.attempts
        if attempt.provider_reference
    } | {item.provider_reference: None for item in facts.unapplied}
    webhooks = limit_rows(
        operation_store.list_webhook_events(
            connection, list(references), [charge.charge_id for charge in facts.charges], MAX_ROWS
        ),
        "webhook events",
        omissions,
    )
    alerts = limit_rows(
        operation_store.list_alerts(connection, _ALERT_KINDS, _alert_subjects(facts), MAX_ROWS),
        "alerts",
        omissions,
    )
    return replace(
        facts,
        webhooks=tuple(map(webhook_facts, webhooks)),
        alerts=tuple(map(alert_facts, alerts)),
    )


def _alert_subjects(facts: PaymentFacts) -> list[str]:
    """The names under which alerts about the payment are raised."""
    return [
        *(f"charges/{charge.charge_id}" for charge in facts.charges),
        *(
            f"paymentOrders/{order.payment_order_id}"
            for charge in facts.charges
            for order in charge.orders
        ),
        *(
            f"deadLetters/{dead_letter.dead_letter_id}"
            for charge in facts.charges
            for dead_letter in charge.dead_letters
        ),
        *(f"unappliedCharges/{item.unapplied_charge_id}" for item in facts.unapplied),
    ]


def _elsewhere(facts: PaymentFacts, *, for_operator: bool) -> Elsewhere:
    """What other services are asked for. Teams may read events only."""
    orders = [order for charge in facts.charges for order in charge.orders]
    booked = [order for order in orders if order.status is OrderStatus.SUCCESS]
    aggregates = [
        f"payments/{facts.checkout_id}",
        *(f"paymentOrders/{order.payment_order_id}" for order in orders),
    ]
    if not for_operator:
        return Elsewhere((), (), aggregates)
    return Elsewhere(
        [
            *(order.payment_order_id for order in booked),
            *(item.unapplied_charge_id for item in facts.unapplied),
        ],
        [f"PAY_IN/{order.payment_order_id}" for order in booked],
        aggregates,
    )
