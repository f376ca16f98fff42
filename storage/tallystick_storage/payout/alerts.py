"""The queries of PayoutService's alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tallystick_core.operations.alert import AlertKind
from tallystick_storage.alerts import AlertQuery, operation_alert_queries
from tallystick_storage.gauges import GaugeQuery, operation_gauge_queries

_STUCK_PAYOUTS = """
    select 'payouts/' || p.payout_id as resource_name,
        p.state || ' since ' || to_char(p.update_time, 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
            || case when d.retry_reason = '' then '' else ': ' || d.retry_reason end as detail
    from (select operation_id, retry_reason from operation
          where kind = 'payout' and phase = '{phase}'
              and phase_start_time < (select clock()) - cast(:{limit} as interval)
              and next_try_time is not null
          order by phase_start_time limit :max_scanned) d
    cross join lateral (
        select p.* from payout p where p.payout_id = d.operation_id offset 0) p
    where p.update_time < (select clock()) - cast(:{limit} as interval)
"""
_ALERT_QUERIES = (
    (
        AlertKind.APPROVAL_OVERDUE,
        "payouts",
        _STUCK_PAYOUTS.format(phase="AWAITING_APPROVAL", limit="awaiting_approval")
        + " and p.state = 'AWAITING_APPROVAL'",
    ),
    (
        AlertKind.PAYOUT_STUCK,
        "payouts",
        " union all ".join(
            (
                f"({_STUCK_PAYOUTS.format(phase=phase, limit=limit)} and p.state <> "
                "'AWAITING_APPROVAL')"
            )
            for phase, limit in (
                ("", "moving"),
                ("SUBMITTED", "submitted"),
                ("IN_TRANSIT", "in_transit"),
            )
        ),
    ),
    (
        AlertKind.DESTINATION_STUCK,
        "payoutDestinations",
        """
    select 'payoutDestinations/' || s.payout_destination_id as resource_name, s.state || case
        when d.retry_reason = '' then '' else ': ' || d.retry_reason end as detail
    from (select operation_id, retry_reason from operation
          where kind = 'destination_verification' and phase = 'VERIFYING'
              and phase_start_time < (select clock()) - cast(:verifying as interval)
              and next_try_time is not null
          order by phase_start_time limit :max_scanned) d
    cross join lateral (select * from payout_destination s
        where s.payout_destination_id = d.operation_id offset 0) s
    where s.update_time < (select clock()) - cast(:verifying as interval)
""",
    ),
    (
        AlertKind.BATCH_STUCK,
        "payoutBatches",
        """
    select 'payoutBatches/' || payout_batch_id as resource_name,
        state || ': ' || generated_count || ' of ' || item_count as detail
    from payout_batch where state = 'GENERATING'
        and update_time < (select clock()) - cast(:generating as interval)
""",
    ),
    (
        AlertKind.SCHEDULE_OVERDUE,
        "payoutSchedules",
        """
    select 'payoutSchedules/' || case seller_account when '' then '-'
        else seller_account end || '/' || currency as resource_name,
        'its cut-off was at ' || to_char(next_time, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as detail
    from payout_schedule where next_time < (select clock()) - cast(:generating as interval)
        order by next_time
""",
    ),
    (
        AlertKind.UNMATCHED_TRANSFER,
        "payouts",
        """
    select 'payouts/' || payout_id as resource_name,
        string_agg(distinct match || ' ' || provider_reference, ', ') as detail from transfer
    where (match <> 'EXACT' or returned_amount > amount or returned_currency not in ('', currency))
        and acknowledged_by = ''
    group by payout_id order by payout_id
""",
    ),
    (
        AlertKind.PAYOUT_STATUS_CONFLICT,
        "payouts",
        """
    select 'payouts/' || payout_id as resource_name,
        string_agg(report, ', ' order by number) as detail
        from conflicting_report where acknowledged_by = ''
    group by payout_id order by payout_id
""",
    ),
)


def gauge_queries() -> Sequence[GaugeQuery]:
    """The gauges of this service."""
    return operation_gauge_queries(
        {"PAYOUT_APPROVAL": "payout_in_state where state = 'AWAITING_APPROVAL'"}
    )


def alert_queries(
    alert_after_seconds: Mapping[str, float], max_event_delay_seconds: float
) -> Sequence[AlertQuery]:
    """The alerts of this service. `alert_after_seconds` is how many seconds a payout may stay in a
    state.
    """
    return operation_alert_queries(
        _ALERT_QUERIES, "payouts", alert_after_seconds, max_event_delay_seconds
    )
