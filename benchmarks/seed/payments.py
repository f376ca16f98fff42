"""Clones payments with their orders, charges and dead letters. Needs the table `new_payment`."""

from __future__ import annotations

from benchmarks.seed.clone import CloneSource, RowCloner, template_table
from benchmarks.seed.fingerprints import fingerprint_sql
from benchmarks.seed.templates import DEAD_LETTER_ID, ORDER_AMOUNT, PLATFORM_FEE, template_id

_REFERENCE_SQL = "case t.provider_reference when '' then '' else 'seed-' || s.number end"
_NEXT_ATTEMPT_SQL = (
    "case when t.next_try_time is not null then "
    "clock_timestamp() + interval '1 hour' + (s.number % 3600) * interval '1 second' end"
)
"""No operation is due while the seeded database is measured."""
ALERT_ID_SQL = "'payment-DEAD_LETTER-deadLetters-charges-' || s.charge_id || '-1-1'"
"""SQL for the id of the alert about the dead letter of a payment."""


def clone_payments(cloner: RowCloner, kind: str) -> None:
    id_ = template_id(kind)
    source = CloneSource(
        f"(select * from new_payment where kind = '{kind}' order by number)",
        f"select create_time from {template_table('payment.checkout')} where checkout_id = '{id_}'",
    )
    _clone_checkouts(cloner, id_, source)
    _clone_orders(cloner, id_, source)
    _clone_attempts(cloner, id_, source)
    if kind != "PAID":
        cloner.insert_rows(
            "payment.checkout_unpaid",
            f"t.checkout_id = '{id_}'",
            source,
            checkout_id="s.checkout_id",
        )
    if kind in ("OPEN", "DEAD"):
        cloner.insert_rows(
            "payment.operation",
            f"t.operation_id = 'o-{id_}-o'",
            source,
            operation_id="s.charge_id",
            next_try_time=_NEXT_ATTEMPT_SQL,
        )
    if kind == "DEAD":
        cloner.insert_rows(
            "payment.dead_letter",
            f"t.operation_id = 'o-{id_}-o'",
            source,
            operation_id="s.charge_id",
            dead_letter_id="'charges-' || s.charge_id || '-1'",
        )
        cloner.insert_rows(
            "payment.alert",
            f"t.resource_name = 'deadLetters/{DEAD_LETTER_ID}'",
            source,
            alert_id=ALERT_ID_SQL,
            resource_name="'deadLetters/charges-' || s.charge_id || '-1'",
        )


def _clone_checkouts(cloner: RowCloner, template_checkout_id: str, source: CloneSource) -> None:
    cloner.insert_rows(
        "payment.checkout",
        f"t.checkout_id = '{template_checkout_id}'",
        source,
        checkout_id="s.checkout_id",
        fingerprint=fingerprint_sql(
            "s.checkout_id",
            "t.owner",
            "t.buyer_info",
            "t.seller_info",
            "t.buyer_country",
            "t.payment_token",
            "t.payment_method_type",
            "t.charge_mode",
            "t.partial_failure_policy",
            "''",
            "s.order_id",
            "s.buyer",
            "s.seller",
            f"'{ORDER_AMOUNT}'",
            "'EUR'",
            f"'{PLATFORM_FEE}'",
        ),
    )


def _clone_orders(cloner: RowCloner, template_checkout_id: str, source: CloneSource) -> None:
    order_filter = f"t.payment_order_id = '{template_checkout_id}-o'"
    cloner.insert_rows(
        "payment.payment_order",
        order_filter,
        source,
        payment_order_id="s.order_id",
        checkout_id="s.checkout_id",
        charge_id="s.charge_id",
        buyer_account="s.buyer",
        seller_account="s.seller",
        provider_reference=_REFERENCE_SQL,
    )
    cloner.insert_rows(
        "payment.order_history",
        order_filter,
        source,
        payment_order_id="s.order_id",
        provider_reference=_REFERENCE_SQL,
    )


def _clone_attempts(cloner: RowCloner, template_checkout_id: str, source: CloneSource) -> None:
    template_charge_id = f"o-{template_checkout_id}-o"
    cloner.insert_rows(
        "payment.attempt",
        f"t.operation_id = '{template_charge_id}'",
        source,
        operation_id="s.charge_id",
        checkout_id="s.checkout_id",
        provider_key="replace(t.provider_key, t.operation_id, s.charge_id)",
        provider_reference=_REFERENCE_SQL,
    )
    cloner.insert_rows(
        "payment.provider_money",
        f"t.charge_id = '{template_charge_id}'",
        source,
        charge_id="s.charge_id",
        provider_reference=_REFERENCE_SQL,
    )
