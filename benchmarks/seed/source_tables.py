"""Temporary tables that say what is to be cloned: `new_payment`, `new_seller`, `new_payout`.

Each row is one clone. `start_time` is the time at which the clone starts.
"""

from __future__ import annotations

from typing import Any

import psycopg

from benchmarks.seed.templates import ORDER_AMOUNT, PAYOUT_AMOUNTS, PLATFORM_FEE
from tallystick_core.payout.request import MAX_PAYOUTS

NET_AMOUNT = ORDER_AMOUNT - PLATFORM_FEE
"""What a seller gets of a payment, in minor units."""
_PAYMENTS_PER_SELLER = 200
_MIN_SELLERS, _MAX_SELLERS = 10, 20_000
_PAYMENTS_PER_BUYER = 5
_PAID, _AWAITING_APPROVAL, _FAILED = (
    PAYOUT_AMOUNTS[state] for state in ("PAID", "AWAITING_APPROVAL", "FAILED")
)
_FAILED_IN_BATCH = 10
"""Payouts of the large batch that failed."""
_BATCH_ID_SQL = f"""case
    when state = 'PAID' and number_of_state % 2 = 0
        and number_of_state <= {2 * (MAX_PAYOUTS - _FAILED_IN_BATCH)} then 'batch-1'
    when state = 'PAID' and number_of_state % 2 = 1
        then 'batch-' || (number_of_state + 3) / 4 + 1
    when state = 'FAILED' and number_of_state <= {_FAILED_IN_BATCH} then 'batch-1'
    else '' end"""
"""SQL for the batch of a payout, "" for none.

Every other PAID payout is in a batch. The first batch is a list of as many payouts as a list may
have, some of which failed. The others are lists of two.
"""


def create_source_tables(
    connection: psycopg.Connection[Any], payments: int, pending_fraction: float
) -> None:
    _create_new_payment(connection, payments, pending_fraction)
    _create_new_seller(connection)
    _create_new_payout(connection)


def _create_new_payment(
    connection: psycopg.Connection[Any], payments: int, pending_fraction: float
) -> None:
    """Spreads kinds and sellers evenly, except that the seller s-3 has every ninth payment.

    `paid_number` numbers the PAID payments of a seller.
    """
    sellers = max(min(payments // _PAYMENTS_PER_SELLER, _MAX_SELLERS), _MIN_SELLERS)
    is_open = f"floor(number * {pending_fraction}) > floor((number - 1) * {pending_fraction})"
    connection.execute(f"""
        create temporary table new_payment as
        select x.*, case kind when 'PAID'
            then row_number() over (partition by seller, kind order by number) end as paid_number
        from (
            select number, 'c-' || number as checkout_id, 'o-' || number as order_id,
                'o-o-' || number as charge_id,
                's-' || case when number % 9 = 4 then 3
                    else (number + number / {sellers}) % {sellers} end as seller,
                'b-' || (number % {max(payments // _PAYMENTS_PER_BUYER, 1)}) as buyer,
                now() - interval '30 days' + number * (interval '29 days' / {payments})
                    as start_time,
                case when number % 10000 = 7 then 'DEAD' when number % 500 = 3 then 'FAILED'
                    when {is_open} then 'OPEN' else 'PAID' end as kind
            from generate_series(1, {payments}) number) x
    """)
    connection.execute("create index on new_payment (kind, number); analyze new_payment")


def _create_new_seller(connection: psycopg.Connection[Any]) -> None:
    """Sellers with a PAID payment. Each fifth payment pays for a payout, from the last one's time
    on.
    """
    connection.execute("""
        create temporary table new_seller as
        select seller, row_number() over (order by seller) as number,
            max(paid_number) as paid_payments, max(paid_number) / 5 as paid_payouts,
            max(start_time) as start_time,
            max(start_time) + max(paid_number) / 5 * interval '1 second' as last_payout_time
        from new_payment where kind = 'PAID' group by seller
    """)
    connection.execute("analyze new_seller")


def _create_new_payout(connection: psycopg.Connection[Any]) -> None:
    """PAID payouts come first. A third of the sellers has one that FAILED, a third one that is
    AWAITING_APPROVAL.

    `entry_number` is the number of the wallet entry that places the hold, `available` the balance
    after it, `number_of_state` numbers the payouts in a state.
    """
    connection.execute(f"""
        create temporary table unnumbered_payout as
        select 'PAID' as state, seller, paid_payments + 2 * n - 1 as entry_number,
            start_time + n * interval '1 second' as start_time,
            {NET_AMOUNT} * paid_payments - {_PAID} * n as available
        from new_seller, generate_series(1, paid_payouts) n
        union all
        select 'FAILED', seller, paid_payments + 2 * paid_payouts + 1,
            last_payout_time + interval '1 hour',
            {NET_AMOUNT} * paid_payments - {_PAID} * paid_payouts - {_FAILED}
        from new_seller where number % 3 = 0
        union all
        select 'AWAITING_APPROVAL', seller, paid_payments + 2 * paid_payouts + 1,
            last_payout_time + interval '2 hours',
            {NET_AMOUNT} * paid_payments - {_PAID} * paid_payouts - {_AWAITING_APPROVAL}
        from new_seller where number % 3 = 1
    """)
    connection.execute(f"""
        create temporary table new_payout as
        select 'p-' || number as payout_id, {_BATCH_ID_SQL} as batch, x.* from (
            select *, row_number() over (order by state <> 'PAID', start_time, seller) as number,
                row_number() over (partition by state order by start_time, seller)
                    as number_of_state
            from unnumbered_payout) x
    """)
    connection.execute("analyze new_payout")
