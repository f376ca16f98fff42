"""Payout schedules and payout batches of a seeded database, cloned from those of the templates'
seller.

Every other payout that is paid belongs to a batch. The first batch is a list of as many payouts as
a list may have, some of which failed; the others are lists of two. Nine sellers in ten have a
schedule of their own, and so have sellers who have sold nothing yet.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from benchmarks.clone import RowCloner, canonical_sql, fingerprint_sql, template_table
from tallystick import AsyncClient
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.payout.request import MAX_PAYOUTS

_BATCH_ID = "t-batch"
_FAILED_COUNT = 10
"""Payouts of the large batch that failed."""
_SALES_PER_SCHEDULE = 20
_UNTIL_CUT_OFF_SQL = "make_interval(days => cast(2 + s.j % 20 as int))"
"""No cut-off comes while a seeded database is measured."""

BATCH_ID_SQL = f"""case
    when kind = 'PAID' and number_of_kind % 2 = 0
        and number_of_kind <= {2 * (MAX_PAYOUTS - _FAILED_COUNT)} then 'batch-1'
    when kind = 'PAID' and number_of_kind % 2 = 1 then 'batch-' || (number_of_kind + 3) / 4 + 1
    when kind = 'FAILED' and number_of_kind <= {_FAILED_COUNT} then 'batch-1'
    else '' end"""
"""SQL for the batch of a payout, "" for none, from its kind and its number among those of
the kind.
"""


async def create_templates(client: AsyncClient, seller: str, payout: payout_pb2.NewPayout) -> None:
    """The default schedule, a schedule of the seller, whose cut-off does not come soon, and a batch
    of one payout.
    """
    await client.payout.SetPayoutSchedule(
        pb.SetPayoutScheduleRequest(currency="EUR", interval=payout_pb2.PAYOUT_INTERVAL_MANUAL)
    )
    await client.payout.SetPayoutSchedule(
        pb.SetPayoutScheduleRequest(
            seller_account=seller,
            currency="EUR",
            interval=payout_pb2.PAYOUT_INTERVAL_MONTHLY,
            day_of_month=(datetime.now(UTC) + timedelta(days=10)).day,
            cut_off="12:00",
            time_zone="UTC",
        )
    )
    await client.payout.CreatePayoutBatch(
        pb.CreatePayoutBatchRequest(payout_batch_id=_BATCH_ID, list=pb.PayoutList(payouts=[payout]))
    )


async def is_batch_done(client: AsyncClient) -> bool:
    """Whether the batch of the templates has come to its end."""
    response = await client.payout.GetPayoutBatch(
        pb.GetPayoutBatchRequest(payout_batch_id=_BATCH_ID)
    )
    return bool(response.payout_batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE)


def clone_schedules(
    connection: psycopg.Connection[Any], cloner: RowCloner, seller: str, sales: int
) -> None:
    """Schedules, each MONTHLY on the day of its next cut-off. Needs the temporary table
    `seller`.
    """
    connection.execute(f"""
        create temporary table payout_schedule_out as
        select seller, j, at from seller where j % 10 <> 0
        union all select 'n-' || j, j, now() - interval '1 day'
            from generate_series(1, {sales // _SALES_PER_SCHEDULE}) j
    """)
    cut_off = (
        "(date_trunc('day', clock_timestamp() at time zone 'UTC') + interval '12 hours' + "
        f"{_UNTIL_CUT_OFF_SQL}) at time zone 'UTC'"
    )
    cloner.insert_rows(
        "payout.payout_schedule",
        f"t.seller_account = '{seller}'",
        "payout_schedule_out",
        seller_account="s.seller",
        owner="case when s.seller like 'n-%' then '' else t.owner end",
        day_of_month=f"extract(day from {cut_off} at time zone 'UTC')",
        next_time=cut_off,
        next_run_time=cut_off,
        update_time="s.at",
    )
    cloner.insert_events(
        f"payoutSchedules/{seller}/EUR",
        "payout_schedule_out",
        "'payoutSchedules/' || s.seller || '/EUR'",
    )


def clone_batches(
    connection: psycopg.Connection[Any], cloner: RowCloner, amounts: dict[str, int]
) -> None:
    """Batches, all DONE, with what they were to pay. Needs the temporary table `payment_out`;
    `amounts`: by its kinds.
    """
    whens = " ".join(f"when '{kind}' then {amount}" for kind, amount in amounts.items())
    payout = canonical_sql("payout_id", "owner", "seller", "amount", "'EUR'", "'d-' || seller")
    connection.execute(f"""
        create temporary table payout_batch_out as
        select batch, min(at) - interval '1 second' as at, max(at) + interval '1 minute' as done,
            count(*) as payouts,
            string_agg({payout}, '' order by payout_id collate "C") as list
        from (select *, cast(case kind {whens} end as text) as amount from payment_out
            where batch <> '') p
        cross join (select owner from {template_table("payout.payout_batch")}) t group by batch
    """)
    cloner.insert_rows(
        "payout.payout_batch",
        f"t.payout_batch_id = '{_BATCH_ID}'",
        "payout_batch_out",
        payout_batch_id="s.batch",
        item_count="s.payouts",
        generated_count="s.payouts",
        create_time="s.at",
        next_run_time="s.at",
        update_time="s.done",
        done_time="s.done",
        fingerprint=fingerprint_sql("s.batch", "t.owner", "''", "''", suffix="s.list"),
    )
    cloner.insert_rows(
        "payout.payout_batch_item",
        f"t.payout_batch_id = '{_BATCH_ID}'",
        "(select * from payment_out where batch <> '' order by batch, payout_id)",
        payout_batch_id="s.batch",
        payout_id="s.payout_id",
        seller_account="s.seller",
        payout_destination_id="'d-' || s.seller",
        amount=f"case s.kind {whens} end",
    )
    cloner.insert_events(
        f"payoutBatches/{_BATCH_ID}", "payout_batch_out", "'payoutBatches/' || s.batch"
    )
