"""A database of N payments with all that belongs to them, cloned from what a few real ones left
behind, so it is what the platform writes.

The platform runs for a moment and takes a payment of each kind, a payout of each kind, schedules
and a batch. Then set-based SQL copies their rows under new ids, times and sellers, with
fingerprints, seals and events of their own; only the book is chained in Python, by the ledger's own
rules. `tallystick verify` passes on the result. The one thing that stays the template's is the body
of each event. Triggers are off and indexes are dropped meanwhile, and the indexes are built again
at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from benchmarks.clone import TABLES, RowCloner, fetch_value, fingerprint_sql, template_table
from benchmarks.seed_batches import (
    BATCH_ID_SQL,
    clone_batches,
    clone_schedules,
    create_templates,
    is_batch_done,
)
from tallystick import AsyncClient, new_order
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as payouts_pb
from tallystick_core.ledger.hash_chain import Head, append_posting
from tallystick_core.ledger.identifiers import BOOK
from tallystick_core.ledger.posting import Posting
from tallystick_core.ledger.posting_rules import (
    JournalLine,
    PostingKind,
    pay_in_lines,
    payout_lines,
)
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app import serve
from tallystick_server.app.configuration import SERVICES, Settings, load
from tallystick_server.app.database.connections import DatabaseUrls, open_databases
from tallystick_server.app.errors import StartupError
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy

StatusPrinter = Callable[[str], None]

_SELLER, _BUYER, _BANK, _BAD_BANK = "t-seller", "t-buyer", "t-bank", "t-bad"
_BANK_TOKENS = {_BANK: "ba_ok", _BAD_BANK: "ba_decline"}
_AMOUNT, _FEE = 1000, 50
_PAYMENT_TOKENS = {
    "PAID": "tok_visa",
    "OPEN": "tok_pending:review",
    "FAILED": "tok_decline:insufficient_funds",
    "DEAD": "tok_rejected",
}
"""What becomes of a payment, and the token that asks the sandbox for it."""
_PAYOUT_AMOUNTS = {"PAID": 200, "AWAITING_APPROVAL": 400, "FAILED": 100}
"""The amounts of payouts, which every fifth sale of a seller pays for; of the last two each of a
few sellers has one.
"""
_MAX_POLLS = 1200


def seed(
    database_urls: DatabaseUrls,
    payments: int,
    print_status: StatusPrinter,
    *,
    pending_fraction: float = 0.01,
) -> dict[str, int | float]:
    """Fills a fresh database with so many payments, of which the part `pending_fraction` waits for
    its provider; what it holds then. Raises Failure.
    """
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        asyncio.run(_create_templates(database_urls, f"unix:{folder}/seed"))
    print_status("The templates are made")
    with psycopg.connect(database_urls.admin, autocommit=True) as connection:
        # no triggers: what they would check is cloned whole
        connection.execute("set session_replication_role = replica")
        connection.execute(
            "set synchronous_commit = off; set work_mem = '256MB'; set maintenance_work_mem = '1GB'"
        )
        with _without_indexes(connection, print_status):
            _Seeder(connection, database_urls.admin, payments, pending_fraction, print_status).run()
        print_status("Analyzing")
        connection.execute("vacuum analyze")
        counts = {
            name: int(fetch_value(connection, f"select count(*) from {name}"))
            for name in (
                "payment.checkout",
                "payment.operation",
                "payout.payout",
                "payout.payout_batch",
                "payout.payout_schedule",
                "ledger.tx",
                "ledger.entry",
                "ledger.account",
                "event.event",
            )
        }
    return {**counts, "seconds": round(time.perf_counter() - start, 1)}


async def _create_templates(database_urls: DatabaseUrls, address: str) -> None:
    """A payment and a payout of each kind, made by the platform itself."""
    settings = Settings().replace(
        server__listen=address,
        worker__sweep_interval=0.05,
        payout__approval_threshold={"EUR": 300},
        payout__destination_cooldown=0.0,
        retry={
            ("", retry_reason): RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 1)
            for retry_reason in (RetryReason.REJECTED, RetryReason.NOT_SENT)
        },
    )
    server = await serve.start(SERVICES, settings, database_urls.all(), None)
    client = AsyncClient(address)
    try:
        for kind, token in _PAYMENT_TOKENS.items():
            await _create_payment(client, f"t-{kind.lower()}", token)
        for id_, account in _BANK_TOKENS.items():
            request = payouts_pb.CreatePayoutDestinationRequest(
                payout_destination_id=id_,
                seller_account=_SELLER,
                currency="EUR",
                bank_account_token=account,
            )
            await client.payout.CreatePayoutDestination(request)
            await _wait_until(partial(_is_verified, client, id_))
        for state in _PAYOUT_AMOUNTS:
            if state == "PAID":
                await create_templates(
                    client, _SELLER, payout_pb2.NewPayout(**_payout_fields(state))
                )
                await _wait_until(partial(is_batch_done, client))
            else:
                await client.payout.CreatePayout(
                    payouts_pb.CreatePayoutRequest(**_payout_fields(state))
                )
            await _wait_until(partial(_is_in_state, client, f"t-{state.lower()}", state))
        await _wait_until(partial(_is_published, database_urls))
    finally:
        await client.close()
        await server.stop(5.0)


def payment_request(
    checkout_id: str, order_id: str, buyer: str, seller: str, token: str = _PAYMENT_TOKENS["PAID"]
) -> payment_service_pb2.CreatePaymentRequest:
    """The request that a seeded payment comes of."""
    return payment_service_pb2.CreatePaymentRequest(
        checkout_id=checkout_id,
        buyer_info="Ada Lovelace, London",
        seller_info="a seller",
        buyer_country="GB",
        credit_card_info=token,
        payment_orders=[new_order(order_id, buyer, seller, "10.00", "EUR", platform_fee="0.50")],
    )


def _payout_fields(state: str) -> dict[str, str]:
    """The fields of the payout that is to come into a state."""
    return {
        "payout_id": f"t-{state.lower()}",
        "seller_account": _SELLER,
        "amount": f"{_PAYOUT_AMOUNTS[state] / 100:.2f}",
        "currency": "EUR",
        "payout_destination_id": _BAD_BANK if state == "FAILED" else _BANK,
    }


async def _create_payment(client: AsyncClient, id_: str, token: str) -> None:
    await client.payment.CreatePayment(payment_request(id_, f"{id_}-o", _BUYER, _SELLER, token))
    expected_state = {"t-paid": "PAID", "t-failed": "FAILED"}.get(id_)

    async def has_expected_state() -> bool:
        if expected_state:
            response = await client.payment.GetPayment(
                payment_service_pb2.GetPaymentRequest(checkout_id=id_)
            )
            return response.payment.payment_state == payment_pb2.PaymentState.Value(
                f"PAYMENT_STATE_{expected_state}"
            )
        order = await client.payment.GetPaymentOrder(
            payment_service_pb2.GetPaymentOrderRequest(payment_order_id=f"{id_}-o")
        )
        if id_ == "t-open":
            return bool(
                order.payment_order.payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_PENDING
            )
        return bool(
            (
                await client.payment.ListDeadLetters(payment_service_pb2.ListDeadLettersRequest())
            ).dead_letters
        )

    await _wait_until(has_expected_state)


async def _is_published(database_urls: DatabaseUrls) -> bool:
    """Whether every event of what has changed is in the stream, where the clones' are taken
    from.
    """
    async with await psycopg.AsyncConnection.connect(database_urls.admin) as connection:
        cursor = await connection.execute("""
            select not exists (select from payment.outbox)
                and not exists (select from payout.outbox)
                and not exists (select from wallet.outbox)
                and not exists (select from ledger.outbox)
                    and (select sequence from ledger.relayed) = (select sequence from ledger.head)
        """)
        return bool((await cursor.fetchone() or (False,))[0])


async def _is_verified(client: AsyncClient, id_: str) -> bool:
    response = await client.payout.GetPayoutDestination(
        payouts_pb.GetPayoutDestinationRequest(payout_destination_id=id_)
    )
    return bool(response.payout_destination.state == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED)


async def _is_in_state(client: AsyncClient, id_: str, state: str) -> bool:
    payout_message = (
        await client.payout.GetPayout(payouts_pb.GetPayoutRequest(payout_id=id_))
    ).payout
    is_final = state == "AWAITING_APPROVAL" or payout_message.wallet_updated
    return bool(
        payout_message.payout_state == payout_pb2.PayoutState.Value(f"PAYOUT_STATE_{state}")
        and is_final
    )


async def _wait_until(condition: Callable[[], Any]) -> None:
    for _ in range(_MAX_POLLS):
        if await condition():
            return
        await asyncio.sleep(0.05)
    raise StartupError("the templates did not come to be what they are to be")


@contextmanager
def _without_indexes(
    connection: psycopg.Connection[Any], print_status: StatusPrinter
) -> Iterator[None]:
    """Drops each index and each constraint that has one, and builds them again once all rows are
    there: in order, not row by row.
    """
    constraints = connection.execute(f"""
        select conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid)
            from pg_constraint
        where contype in ('p', 'u', 'x', 'f') and conrelid in ({TABLES}) order by contype = 'f'
    """).fetchall()
    indexes = connection.execute(f"""
        select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index i
        where indrelid in ({TABLES})
            and not exists (select from pg_constraint c where c.conindid = i.indexrelid
            and c.conrelid = i.indrelid)
    """).fetchall()
    for table, name, _ in reversed(constraints):  # foreign keys first, which need the others
        connection.execute(f"alter table {table} drop constraint {name}")
    for name, _ in indexes:
        connection.execute(f"drop index {name}")
    yield
    print_status("Indexes are being built")
    for table, name, definition in constraints:
        connection.execute(f"alter table {table} add constraint {name} {definition}")
    for _, definition in indexes:
        connection.execute(definition)


class _Seeder:
    """Makes the clones. `s` names the row of what is made, in each expression; `t` the
    template's.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        url: str,
        payments: int,
        pending_fraction: float,
        print_status: StatusPrinter,
    ) -> None:
        self._connection = connection
        self._cloner = RowCloner(connection)
        self._url = url
        self._payments = payments
        self._pending_fraction = pending_fraction
        self._sellers = max(min(payments // 200, 20_000), 10)
        self._print_status = print_status

    def run(self) -> None:
        self._create_sale_tables()
        self._create_payout_tables()
        for kind in _PAYMENT_TOKENS:
            self._clone_payments(kind)
            self._print_status(f"Payments that are {kind} are made")
        self._clone_wallets()
        for state in _PAYOUT_AMOUNTS:
            self._clone_payouts(state)
        clone_batches(self._connection, self._cloner, _PAYOUT_AMOUNTS)
        clone_schedules(self._connection, self._cloner, _SELLER, self._payments)
        self._print_status("Wallets and payouts are made")
        first_sequence = self._chain_ledger()
        self._print_status("The book is chained")
        self._clone_events(first_sequence)
        self._print_status("Events are made")
        self._connection.execute(f"""
            insert into payment.commit_marker
            select gen_random_uuid(), clock_timestamp() - i * interval '2 hours' / {self._payments}
                from generate_series(1, {self._payments}, 10) i
        """)

    def _create_sale_tables(self) -> None:
        """Temporary tables of what is to be made. Kinds are spread evenly, and so are sellers, but
        for s-3, which has every ninth payment.

        `k` counts the sales of a seller that were paid, `done` is when its last payout was made.
        """
        is_open = f"floor(i * {self._pending_fraction}) > floor((i - 1) * {self._pending_fraction})"
        self._connection.execute(f"""
            create temporary table sale as
            select x.*, case kind when 'PAID'
                then row_number() over (partition by seller, kind order by i) end as k from (
                select i, 'c-' || i as checkout_id, 'o-' || i as order_id, 'o-o-' || i as charge_id,
                    's-' || case when i % 9 = 4 then 3
                        else (i + i / {self._sellers}) % {self._sellers} end as seller,
                    'b-' || (i % {max(self._payments // 5, 1)}) as buyer,
                    now() - interval '30 days' + i * (interval '29 days' / {self._payments}) as at,
                    case when i % 10000 = 7 then 'DEAD' when i % 500 = 3 then 'FAILED'
                        when {is_open} then 'OPEN' else 'PAID' end as kind
                from generate_series(1, {self._payments}) i) x
        """)
        self._connection.execute("create index on sale (kind, i); analyze sale")
        self._connection.execute("""
            create temporary table seller as
            select seller, row_number() over (order by seller) as j, max(k) as sales,
                max(k) / 5 as paid, max(at) as at,
                max(at) + max(k) / 5 * interval '1 second' as done
            from sale where kind = 'PAID' group by seller
        """)
        self._connection.execute("analyze seller")

    def _create_payout_tables(self) -> None:
        """A temporary table of the payouts that are to be made; those that are paid come first."""
        self._connection.execute("""
            create temporary table payment_out_unnumbered as
            select 'PAID' as kind, seller, sales + 2 * m - 1 as number,
                at + m * interval '1 second' as at, 950 * sales - 200 * m as available
            from seller, generate_series(1, paid) m
            union all
            select 'FAILED', seller, sales + 2 * paid + 1, done + interval '1 hour',
                950 * sales - 200 * paid - 100 from seller where j % 3 = 0
            union all
            select 'AWAITING_APPROVAL', seller, sales + 2 * paid + 1, done + interval '2 hours',
                950 * sales - 200 * paid - 400
            from seller where j % 3 = 1
        """)
        self._connection.execute(f"""
            create temporary table payment_out as
            select 'p-' || i as payout_id, {BATCH_ID_SQL} as batch, n.* from (
                select *, row_number() over (order by kind <> 'PAID', at, seller) as i,
                    row_number() over (partition by kind order by at, seller) as number_of_kind
                from payment_out_unnumbered) n
        """)
        self._connection.execute("analyze payment_out")

    def _clone_payments(self, kind: str) -> None:
        id_ = f"t-{kind.lower()}"
        source = f"(select * from sale where kind = '{kind}' order by i)"
        begin = (
            f"select create_time from {template_table('payment.checkout')} where checkout_id = "
            f"'{id_}'"
        )
        order_filter, charge_filter = (
            f"t.payment_order_id = '{id_}-o'",
            f"t.operation_id = 'o-{id_}-o'",
        )
        reference = "case t.provider_reference when '' then '' else 'seed-' || s.i end"
        checkout_fingerprint = fingerprint_sql(
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
            f"'{_AMOUNT}'",
            "'EUR'",
            f"'{_FEE}'",
        )
        self._cloner.insert_rows(
            "payment.checkout",
            f"t.checkout_id = '{id_}'",
            source,
            begin=begin,
            checkout_id="s.checkout_id",
            fingerprint=checkout_fingerprint,
        )
        self._cloner.insert_rows(
            "payment.payment_order",
            order_filter,
            source,
            begin=begin,
            payment_order_id="s.order_id",
            checkout_id="s.checkout_id",
            charge_id="s.charge_id",
            buyer_account="s.buyer",
            seller_account="s.seller",
            provider_reference=reference,
        )
        self._cloner.insert_rows(
            "payment.order_history",
            order_filter,
            source,
            begin=begin,
            payment_order_id="s.order_id",
            provider_reference=reference,
        )
        self._cloner.insert_rows(
            "payment.attempt",
            charge_filter,
            source,
            begin=begin,
            operation_id="s.charge_id",
            checkout_id="s.checkout_id",
            provider_key="replace(t.provider_key, t.operation_id, s.charge_id)",
            provider_reference=reference,
        )
        self._cloner.insert_rows(
            "payment.provider_money",
            f"t.charge_id = 'o-{id_}-o'",
            source,
            charge_id="s.charge_id",
            provider_reference=reference,
        )
        if kind != "PAID":
            self._cloner.insert_rows(
                "payment.checkout_unpaid",
                f"t.checkout_id = '{id_}'",
                source,
                begin=begin,
                checkout_id="s.checkout_id",
            )
        if kind in ("OPEN", "DEAD"):
            later = "clock_timestamp() + interval '1 hour' + (s.i % 3600) * interval '1 second'"
            self._cloner.insert_rows(
                "payment.operation",
                charge_filter,
                source,
                begin=begin,
                operation_id="s.charge_id",
                next_attempt_time=f"case when t.next_attempt_time is not null then {later} end",
            )
        if kind == "DEAD":
            self._cloner.insert_rows(
                "payment.dead_letter",
                f"t.resource_name = 'charges/o-{id_}-o'",
                source,
                begin=begin,
                resource_name="'charges/' || s.charge_id",
                dead_letter_id="'charges-' || s.charge_id || '-1'",
            )

    def _clone_wallets(self) -> None:
        seller_filter = f"t.seller_account = '{_SELLER}'"
        self._cloner.insert_rows(
            "wallet.wallet",
            seller_filter,
            "seller",
            seller_account="s.seller",
            version="s.sales",
            pending="0",
            held="0",
            owed="0",
            available="950 * s.sales",
            balance="950 * s.sales",
            policy_version="0",
            update_time="s.at",
        )
        self._cloner.insert_rows(
            "wallet.wallet_entry",
            "t.kind = 'CREDIT' and t.source_id = 'PAY_IN/t-paid-o'",
            "(select * from sale where kind = 'PAID' order by i)",
            seller_account="s.seller",
            number="s.k",
            source_id="'PAY_IN/' || s.order_id",
            available_after="950 * s.k",
            create_time="s.at",
            fingerprint=_entry_fingerprint_sql(
                "'PAY_IN/' || s.order_id", "s.seller", "t.currency", "t.amount::text", pending="1"
            ),
        )
        self._cloner.insert_rows(
            "payout.payout_destination",
            f"t.payout_destination_id = '{_BANK}'",
            "seller",
            payout_destination_id="'d-' || s.seller",
            seller_account="s.seller",
            create_time="s.at",
            update_time="s.at",
            usable_time="s.at",
            verified_time="s.at",
            fingerprint=fingerprint_sql(
                "'d-' || s.seller",
                "t.owner",
                "s.seller",
                "t.currency",
                "t.bank_account_token",
                "t.description",
            ),
        )
        self._cloner.insert_rows(
            "wallet.seller", seller_filter, "seller", seller_account="s.seller", update_time="s.at"
        )
        self._cloner.insert_rows(
            "payment.seller_owner",
            seller_filter,
            "seller",
            seller_account="s.seller",
            update_time="s.at",
        )

    def _clone_payouts(self, state: str) -> None:
        id_ = f"t-{state.lower()}"
        source = f"(select * from payment_out where kind = '{state}' order by i)"
        begin = (
            f"select create_time from {template_table('payout.payout')} where payout_id = '{id_}'"
        )
        payout_filter = f"t.payout_id = '{id_}'"
        reference = "case t.provider_reference when '' then '' else 'seed-p-' || s.i end"
        shared = {"begin": begin, "payout_id": "s.payout_id"}
        self._cloner.insert_rows(
            "payout.payout",
            payout_filter,
            source,
            **shared,
            seller_account="s.seller",
            payout_destination_id="'d-' || s.seller",
            payout_batch_id="s.batch",
            provider_reference=reference,
            requested_destination="'d-' || s.seller",
            fingerprint=fingerprint_sql(
                "s.payout_id",
                "t.owner",
                "s.seller",
                "coalesce(t.requested_amount::text, '')",
                "t.currency",
                "'d-' || s.seller",
            ),
        )
        self._cloner.insert_rows("payout.payout_history", payout_filter, source, **shared)
        self._cloner.insert_rows(
            "payout.transfer",
            payout_filter,
            source,
            **shared,
            source_id="s.payout_id",
            provider_reference=reference,
        )
        tomorrow = "clock_timestamp() + interval '1 day' + s.i * interval '10 ms'"
        self._cloner.insert_rows(
            "payout.completed_payout_poll",
            payout_filter,
            source,
            payout_id="s.payout_id",
            next_poll_time=tomorrow,
        )
        self._cloner.insert_rows("payout.payout_in_state", payout_filter, source, **shared)
        operation_filter = f"t.operation_id = 'p-{id_}'"
        self._cloner.insert_rows(
            "payout.attempt",
            operation_filter,
            source,
            begin=begin,
            operation_id="'p-' || s.payout_id",
            provider_key="replace(t.provider_key, t.operation_id, 'p-' || s.payout_id)",
            provider_reference=reference,
        )
        self._cloner.insert_rows(
            "payout.operation",
            operation_filter,
            source,
            begin=begin,
            operation_id="'p-' || s.payout_id",
            payout_destination_id="'d-' || s.seller",
        )
        self._clone_holds(state, source, begin)

    def _clone_holds(self, state: str, source: str, begin: str) -> None:
        """The holds of payouts, and their entries in the wallets, which then stand as the last of
        these says.
        """
        id_, amount = f"t-{state.lower()}", _PAYOUT_AMOUNTS[state]
        self._cloner.insert_rows(
            "wallet.hold",
            f"t.hold_id = 'payouts/{id_}'",
            source,
            begin=begin,
            hold_id="'payouts/' || s.payout_id",
            seller_account="s.seller",
        )
        hold = "'payouts/' || s.payout_id"
        placed_fingerprint = _entry_fingerprint_sql(
            hold, "s.seller", "t.currency", "t.amount::text", purpose="PAYOUT"
        )
        ended_fingerprint = _entry_fingerprint_sql(
            hold, "''", "''", "case t.kind when 'HOLD_CAPTURED' then t.amount::text else '0' end"
        )
        entry_filter = f"t.source_id = 'payouts/{id_}' and t.kind like 'HOLD\\_%'"
        self._cloner.insert_rows(
            "wallet.wallet_entry",
            entry_filter,
            source,
            begin=begin,
            source_id="'payouts/' || s.payout_id",
            seller_account="s.seller",
            number="s.number + (t.kind <> 'HOLD_PLACED')::int",
            available_after=(
                f"s.available + case t.kind when 'HOLD_RELEASED' then {amount} else 0 end"
            ),
            held_after=f"case t.kind when 'HOLD_PLACED' then {amount} else 0 end",
            fingerprint=(
                f"case t.kind when 'HOLD_PLACED' then {placed_fingerprint} else "
                f"{ended_fingerprint} end"
            ),
        )
        self._connection.execute("""
            update wallet.wallet w set version = e.number, available = e.available_after,
                held = e.held_after,
                balance = e.available_after + e.held_after, update_time = e.create_time
            from (select distinct on (seller_account, currency) * from wallet.wallet_entry
                where seller_account like 's-%'
                  order by seller_account, currency, number desc) e
            where w.seller_account = e.seller_account and w.currency = e.currency
        """)

    def _chain_ledger(self) -> int:
        """Transactions and entries, chained behind the templates' by the ledger's own rules; the
        templates' last sequence.
        """
        connection = self._connection
        head_row = connection.execute(
            "select sequence, hash, post_time from ledger.head"
        ).fetchone()
        if head_row is None:
            raise StartupError("the book has no head")
        first_sequence = int(head_row[0])
        head = Head(head_row[0], bytes(head_row[1]), head_row[2])
        rows = connection.execute(
            "select account, currency, account_id, balance, entry_count from ledger.account"
        ).fetchall()
        ids = {(row[0], row[1]): row[2] for row in rows}
        balances = {(row[0], row[1]): int(row[3]) for row in rows}
        counts = {(row[0], row[1]): row[4] for row in rows}
        existing_keys = set(ids)
        caller_by_kind = {
            row[0]: row[1]
            for row in connection.execute(
                "select kind, caller from ledger.tx where kind in ('PAY_IN', 'PAYOUT')"
            ).fetchall()
        }
        post_time = head.post_time
        next_id = max(ids.values()) + 1
        with (
            psycopg.connect(self._url) as first,
            psycopg.connect(self._url) as second,
            connection.cursor(name="postings", withhold=True) as postings,
        ):
            for copy_connection in (first, second):
                copy_connection.execute(
                    "set session_replication_role = replica; set synchronous_commit = off"
                )
            postings.itersize = 20_000
            postings.execute("""
                select 'PAY_IN', order_id, buyer, seller from sale where kind = 'PAID'
                union all select 'PAYOUT', payout_id, '', seller from payment_out
                    where kind = 'PAID'
            """)
            with (
                first.cursor().copy(
                    "copy ledger.tx (book, sequence, kind, source_id, caller, fingerprint, "
                    "entry_count, "
                    "description, effective_time, post_time, previous_hash, hash) from stdin"
                ) as transactions,
                second.cursor().copy(
                    "copy ledger.entry (book, sequence, line_number, account_id, currency, amount, "
                    "balance_after, number) from stdin"
                ) as entries,
            ):
                for kind, source_id, buyer, seller in postings:
                    posting = Posting(
                        PostingKind(kind),
                        source_id,
                        caller_by_kind[kind],
                        _lines(kind, buyer, seller),
                    )
                    for line in posting.lines:
                        key = (line.account, line.currency)
                        if key not in ids:
                            ids[key], balances[key], counts[key] = next_id, 0, 0
                            next_id += 1
                    post_time += timedelta(microseconds=1)
                    transaction = append_posting(head, posting, post_time, balances)
                    head = Head(transaction.sequence, transaction.hash, transaction.post_time)
                    transactions.write_row(
                        (
                            BOOK,
                            transaction.sequence,
                            kind,
                            source_id,
                            posting.caller,
                            posting.fingerprint,
                            len(posting.lines),
                            "",
                            post_time,
                            post_time,
                            transaction.previous_hash,
                            transaction.hash,
                        )
                    )
                    for line_number, (line, balance) in enumerate(
                        zip(posting.lines, transaction.balances_after, strict=True), 1
                    ):
                        key = (line.account, line.currency)
                        counts[key] += 1
                        entries.write_row(
                            (
                                BOOK,
                                transaction.sequence,
                                line_number,
                                ids[key],
                                line.currency,
                                line.amount,
                                balance,
                                counts[key],
                            )
                        )
        account_rows = [
            (id_, *key, balances[key], counts[key], post_time)
            for key, id_ in ids.items()
            if key not in existing_keys
        ]
        _copy_rows(
            connection,
            "ledger.account (account_id, account, currency, balance, entry_count, create_time)",
            account_rows,
        )
        connection.execute(
            "select setval(pg_get_serial_sequence('ledger.account', 'account_id'), %s)", (next_id,)
        )
        for key in existing_keys:
            values = (balances[key], counts[key], ids[key])
            connection.execute(
                "update ledger.account set balance = %s, entry_count = %s where account_id = %s",
                values,
            )
        connection.execute(
            "update ledger.head set sequence = %s, hash = %s, post_time = %s",
            (head.sequence, head.hash, head.post_time),
        )
        connection.execute("update ledger.relayed set sequence = %s", (head.sequence,))
        return first_sequence

    def _clone_events(self, first_sequence: int) -> None:
        """An event for each version, but for the body the same as its template's; how far the
        stream is. `first_sequence`: the sequence before the clones'.
        """
        for kind in _PAYMENT_TOKENS:
            source = f"(select * from sale where kind = '{kind}')"
            self._cloner.insert_events(
                f"payments/t-{kind.lower()}", source, "'payments/' || s.checkout_id"
            )
            self._cloner.insert_events(
                f"paymentOrders/t-{kind.lower()}-o", source, "'paymentOrders/' || s.order_id"
            )
        dead_sales = "(select * from sale where kind = 'DEAD')"
        self._cloner.insert_events(
            "deadLetters/charges-o-t-dead-o-1",
            dead_sales,
            "'deadLetters/charges-' || s.charge_id || '-1'",
        )
        self._cloner.insert_events(f"sellers/{_SELLER}", "seller", "'sellers/' || s.seller")
        self._cloner.insert_events(
            f"payoutDestinations/{_BANK}", "seller", "'payoutDestinations/d-' || s.seller"
        )
        for state in _PAYOUT_AMOUNTS:
            source = f"(select * from payment_out where kind = '{state}')"
            self._cloner.insert_events(
                f"payouts/t-{state.lower()}", source, "'payouts/' || s.payout_id"
            )
        entries = (
            "(select seller_account, currency, number from wallet.wallet_entry where "
            "seller_account like 's-%')"
        )
        self._cloner.insert_events(
            f"wallets/{_SELLER}/EUR",
            entries,
            "'wallets/' || s.seller_account || '/' || s.currency",
            version="s.number",
        )
        self._cloner.insert_events(
            "transactions/main-1",
            f"(select sequence from ledger.tx where sequence > {first_sequence})",
            "'transactions/main-' || s.sequence",
        )
        self._connection.execute(
            "update event.head set cursor = (select max(cursor) from event.event)"
        )


def _entry_fingerprint_sql(
    source_id: str,
    seller: str,
    currency: str,
    amount: str,
    *,
    pending: str = "0",
    purpose: str = "",
) -> str:
    """SQL for the fingerprint of the instruction that made a wallet's entry."""
    return fingerprint_sql(
        "t.kind", source_id, seller, currency, amount, f"'{pending}'", "'0'", f"'{purpose}'", "''"
    )


def _lines(kind: str, buyer: str, seller: str) -> tuple[JournalLine, ...]:
    if kind == "PAYOUT":
        return payout_lines("sandbox", seller, "EUR", _PAYOUT_AMOUNTS["PAID"], 0)
    return pay_in_lines("sandbox", buyer, seller, "EUR", _AMOUNT, _FEE)


def _copy_rows(
    connection: psycopg.Connection[Any], table: str, rows: list[tuple[Any, ...]]
) -> None:
    with connection.cursor().copy(f"copy {table} from stdin") as copy:
        for row in rows:
            copy.write_row(row)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/seed",
        description="Fills a fresh database with payments and all that belongs to them.",
    )
    parser.add_argument("--payments", type=int, required=True, help="how many")
    parser.add_argument(
        "--waiting",
        type=float,
        default=0.01,
        help="the part of them that waits for its provider; 0.01",
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    if options.payments < 1000:
        parser.error("--payments must be at least 1000")

    def print_status(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        with open_databases(load(), print_status) as database_urls:
            result = seed(
                database_urls, options.payments, print_status, pending_fraction=options.waiting
            )
    except StartupError as failure:
        sys.exit(f"seed: {failure}")
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:>18}: {value}")


if __name__ == "__main__":
    main()
