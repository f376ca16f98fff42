"""The queries of PaymentService's alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tallystick_core.operations.alert import AlertKind
from tallystick_core.payment.state import OrderStatus
from tallystick_storage.alerts import AlertQuery, operation_alert_queries
from tallystick_storage.gauges import GaugeQuery, operation_gauge_queries

# The orders that have waited longer than the limit, the longest first.
_WAITING_ORDERS = """
    (select operation_id, retry_reason from operation
     where kind = 'charge' and phase = '{phase}'
         and phase_start_time < (select clock()) - cast(:{limit} as interval)
         and next_try_time is not null
     order by phase_start_time limit :max_scanned) d
    cross join lateral (select a.checkout_id from attempt a where a.kind = 'charge'
        and a.operation_id = d.operation_id and a.attempt_number = 1 offset 0) a
    cross join lateral (
        select o.* from payment_order o where o.checkout_id = a.checkout_id
            and o.charge_id = d.operation_id and o.status <> 'FAILED' offset 0) o
"""
_STUCK_ORDERS = f"""
    select 'paymentOrders/' || o.payment_order_id as resource_name,
        o.status || ' since ' || to_char(o.update_time, 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
            || case when d.retry_reason = '' then '' else ': ' || d.retry_reason end as detail
    from {_WAITING_ORDERS}
    where o.update_time < (select clock()) - case o.status when 'SUCCESS'
        then cast(:success as interval) when 'PENDING' then cast(:pending as interval)
        else cast(:executing as interval) end
"""
_ALERT_QUERIES = (
    (
        AlertKind.ORDER_STUCK,
        "paymentOrders",
        " union all ".join(
            f"({_STUCK_ORDERS.format(phase=phase, limit=limit)})"
            for phase, limit in (
                ("", "executing"),
                ("PENDING", "pending"),
                ("REVIEW", "pending"),
                ("SUCCESS", "success"),
            )
        ),
    ),
    (
        AlertKind.REVIEW_OVERDUE,
        "paymentOrders",
        f"""
    select 'paymentOrders/' || o.payment_order_id as resource_name, o.pending_reason as detail
        from {_WAITING_ORDERS.format(phase="REVIEW", limit="review")}
    where o.pending_reason not in ('', 'BUYER_ACTION')
        and o.update_time < (select clock()) - cast(:review as interval)
""",
    ),
    (
        AlertKind.UNAPPLIED_CHARGE,
        "unappliedCharges",
        """
    select 'unappliedCharges/' || unapplied_charge_id as resource_name, cause as detail
        from unapplied_charge where acknowledged_by = ''
    order by create_time desc, unapplied_charge_id desc
""",
    ),
    (
        AlertKind.CHARGE_STATUS_CONFLICT,
        "charges",
        """
    select 'charges/' || charge_id as resource_name,
        string_agg(report, '; ' order by number) as detail
        from conflicting_report where acknowledged_by = ''
    group by charge_id order by charge_id
""",
    ),
    (
        AlertKind.RELEASE_STUCK,
        "paymentOrders",
        """
    (select 'paymentOrders/' || payment_order_id as resource_name, rejection_message as detail
        from pending_release
        where rejection_message <> '')
    union all
    (select 'paymentOrders/' || payment_order_id, 'the release was never tried' from pending_release
     where rejection_message = '' and create_time < (select clock()) - cast(:success as interval)
         order by create_time, payment_order_id)
""",
    ),
)


def gauge_queries() -> Sequence[GaugeQuery]:
    """The gauges of this service."""
    return operation_gauge_queries(
        {"UNAPPLIED_CHARGE": "unapplied_charge where acknowledged_by = ''"}
    )


def alert_queries(
    alert_after_seconds: Mapping[str, float], review_seconds: float, max_event_delay_seconds: float
) -> Sequence[AlertQuery]:
    """The alerts of this service. All limits are in seconds: `alert_after_seconds` that an order
    may stay in a status, `review_seconds` that a review may take, and `max_event_delay_seconds`
    that an event may wait to be published.
    """
    limits = {
        str(status): alert_after_seconds[status]
        for status in (OrderStatus.EXECUTING, OrderStatus.PENDING, OrderStatus.SUCCESS)
    }
    return operation_alert_queries(
        _ALERT_QUERIES, "charges", {**limits, "review": review_seconds}, max_event_delay_seconds
    )
