"""Clones payout batches and payout schedules."""

from __future__ import annotations

from benchmarks.seed.clone import CloneSource, RowCloner, template_table
from benchmarks.seed.fingerprints import canonical_sql, fingerprint_sql
from benchmarks.seed.templates import BATCH_ID, PAYOUT_AMOUNTS, SELLER

_PAYMENTS_PER_SCHEDULE = 20
_CUT_OFF_SQL = (
    "(date_trunc('day', clock_timestamp() at time zone 'UTC') + interval '12 hours' + "
    "make_interval(days => cast(2 + s.number % 20 as int))) at time zone 'UTC'"
)
"""At least a day away, so no cut-off comes while the seeded database is measured."""


def clone_batches(cloner: RowCloner) -> None:
    """Clones batches, all DONE, with their items. Needs the table `new_payout`."""
    _create_new_batch(cloner)
    source = CloneSource("new_batch")
    cloner.insert_rows(
        "payout.payout_batch",
        f"t.payout_batch_id = '{BATCH_ID}'",
        source,
        payout_batch_id="s.batch",
        item_count="s.payout_count",
        generated_count="s.payout_count",
        create_time="s.start_time",
        next_run_time="s.start_time",
        update_time="s.done_time",
        done_time="s.done_time",
        fingerprint=fingerprint_sql("s.batch", "t.owner", "''", "''", suffix="s.canonical_list"),
    )
    cloner.insert_rows(
        "payout.payout_batch_item",
        f"t.payout_batch_id = '{BATCH_ID}'",
        CloneSource("(select * from new_payout where batch <> '' order by batch, payout_id)"),
        payout_batch_id="s.batch",
        payout_id="s.payout_id",
        seller_account="s.seller",
        payout_destination_id="'d-' || s.seller",
        amount=_amount_sql("s.state"),
    )
    cloner.insert_events(f"payoutBatches/{BATCH_ID}", source.rows, "'payoutBatches/' || s.batch")


def _create_new_batch(cloner: RowCloner) -> None:
    """`canonical_list` is the canonical text of the batch's payouts, for its fingerprint."""
    canonical_payout = canonical_sql(
        "payout_id", "owner", "seller", "amount", "'EUR'", "'d-' || seller"
    )
    cloner.connection.execute(f"""
        create temporary table new_batch as
        select batch, min(start_time) - interval '1 second' as start_time,
            max(start_time) + interval '1 minute' as done_time, count(*) as payout_count,
            string_agg({canonical_payout}, '' order by payout_id collate "C") as canonical_list
        from (select *, cast({_amount_sql("state")} as text) as amount
            from new_payout where batch <> '') p
        cross join (select owner from {template_table("payout.payout_batch")}) t group by batch
    """)


def _amount_sql(state_column: str) -> str:
    """SQL for the amount of a payout in minor units, from its state."""
    whens = " ".join(f"when '{state}' then {amount}" for state, amount in PAYOUT_AMOUNTS.items())
    return f"case {state_column} {whens} end"


def clone_schedules(cloner: RowCloner, payments: int) -> None:
    """Clones schedules, each MONTHLY on the day of its next cut-off. Needs the table `new_seller`.

    Nine sellers in ten have one, and so have sellers without payments.
    """
    cloner.connection.execute(f"""
        create temporary table new_schedule as
        select seller, number, start_time from new_seller where number % 10 <> 0
        union all
        select 'n-' || n, n, now() - interval '1 day'
        from generate_series(1, {payments // _PAYMENTS_PER_SCHEDULE}) n
    """)
    source = CloneSource("new_schedule")
    cloner.insert_rows(
        "payout.payout_schedule",
        f"t.seller_account = '{SELLER}'",
        source,
        seller_account="s.seller",
        owner="case when s.seller like 'n-%' then '' else t.owner end",
        day_of_month=f"extract(day from {_CUT_OFF_SQL} at time zone 'UTC')",
        next_time=_CUT_OFF_SQL,
        next_run_time=_CUT_OFF_SQL,
        update_time="s.start_time",
    )
    cloner.insert_events(
        f"payoutSchedules/{SELLER}/EUR", source.rows, "'payoutSchedules/' || s.seller || '/EUR'"
    )
