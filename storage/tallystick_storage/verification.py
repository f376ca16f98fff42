"""What `tallystick verify` reads: whole tables as sorted streams, by a read-only role of each service, all as they stood at one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, Row, create_engine, text

_ROWS_AT_ONCE = 5000

QUERIES = {
    "ledger.heads": "select book, sequence, hash, post_time from head order by book",
    "ledger.transactions": """
        select t.sequence, t.kind, t.cause_id, t.caller, t.n, t.description, t.reverses, t.effective_time, t.post_time, t.previous_hash, t.hash,
            e.place, e.account_id, a.account, a.currency as account_currency, e.currency, e.amount, e.balance_after
        from tx t left join entry e on e.book = t.book and e.sequence = t.sequence left join account a on a.account_id = e.account_id
        order by t.book, t.sequence, e.place""",
    "ledger.strays": """
        select e.sequence, e.place from entry e where not exists (select from tx t where t.book = e.book and t.sequence = e.sequence) order by 1, 2""",
    "ledger.accounts": "select account_id, account, currency, balance, entry_count from account order by account, currency",
    "ledger.repeated": "select kind, cause_id, count(*) as times from tx group by kind, cause_id having count(*) > 1 order by kind, cause_id",
    "ledger.pay_ins": """
        select t.cause_id, t.sequence, e.place, a.account, e.currency, e.amount
        from tx t join entry e on e.book = t.book and e.sequence = t.sequence join account a on a.account_id = e.account_id
        where t.kind = 'PAY_IN' order by t.cause_id, t.sequence, e.place""",
    "ledger.sellers": """
        select substr(account, 9) as seller_account, currency, balance from account
        where account like 'sellers/%' and entry_count > 0 order by seller_account, currency""",
    "wallet.wallets": "select * from wallet order by seller_account, currency",
    "wallet.entries": "select * from wallet_entry order by seller_account, currency, number",
    "wallet.versions": "select seller_account, currency, number as version from wallet_entry order by seller_account, currency, number",
    "wallet.holds": """
        select seller_account, currency, sum(amount) as held from hold where state = 'OPEN' group by seller_account, currency
        order by seller_account, currency""",
    "wallet.pending": """
        select c.seller_account, c.currency, c.cause, c.amount, e.amount as credited, r.cause is not null as released,
            c.release_time < (select max(create_time) from mark) - interval '10 minutes' as overdue  -- after which work was still done
        from pending_credit c left join wallet_entry e on e.kind = 'CREDIT' and e.cause = c.cause
        left join wallet_entry r on r.kind = 'RELEASE' and r.cause = c.cause order by c.cause""",
    "wallet.pay_ins": """
        select substr(cause, 8) as payment_order_id, seller_account, currency, amount from wallet_entry
        where kind = 'CREDIT' and cause like 'PAY_IN/%' order by payment_order_id""",
    "wallet.outbox": "select unnest(aggregate_ids) as aggregate_id, unnest(versions) as version from outbox",
    "payment.checkouts": "select * from checkout order by checkout_id",
    "payment.orders": "select * from payment_order order by payment_order_id",
    "payment.orders_by_checkout": """
        select checkout_id, charge_id, payment_order_id, status, wallet_updated and ledger_updated as settled, amount, currency, provider_reference,
            failure_reason, version from payment_order order by checkout_id, payment_order_id""",
    "payment.history": """
        select payment_order_id, version, from_status, to_status, wallet_updated, ledger_updated, delivered, pending_reason, next_action_url,
            provider_reference from order_history order by 1, 2""",
    "payment.attempts": """
        select a.*, o.amount as orders_amount, o.low, o.high, o.succeeded, o.open, o.orders, u.amount as unapplied_amount, u.currency as unapplied_currency
        from attempt a left join unapplied_charge u on u.provider = a.provider and u.provider_reference = a.provider_reference
        left join lateral (
            select sum(o.amount) as amount, min(o.currency) as low, max(o.currency) as high, count(*) filter (where o.status = 'SUCCESS') as succeeded,
                count(*) filter (where o.status in ('EXECUTING', 'PENDING')) as open, count(*) as orders
            from payment_order o where o.checkout_id = a.checkout_id and o.charge_id = a.demand_id
                and o.attempt_count > 0) o on true
        order by a.demand_id, a.number""",
    "payment.shared_references": """
        select provider, provider_reference, count(*) as charges from (
            select provider, provider_reference, demand_id from attempt where outcome = 'SUCCEEDED'
            union select provider, provider_reference, charge_id from unapplied_charge) c
        group by provider, provider_reference having count(*) > 1 order by provider, provider_reference""",
    "payment.due": """
        with o as (
            select charge_id, min(payment_order_id) as payment_order_id from payment_order
            where status <> 'FAILED' and not (status = 'SUCCESS' and wallet_updated and ledger_updated) group by charge_id),
        l as (select substr(subject, 9) as charge_id from dead_letter where state = 'OPEN' and subject like 'charges/%')
        select charge_id as demand_id, o.payment_order_id as open, d.lease_token is not null as listed, d.next_attempt_time is not null as due,
            l.charge_id is not null as set_aside
        from o full join (select demand_id as charge_id, lease_token, next_attempt_time from due) d using (charge_id) full join l using (charge_id) order by charge_id""",
    "payment.delivered": """
        select o.payment_order_id, r.payment_order_id is not null as waiting
        from payment_order o left join to_release r on r.payment_order_id = o.payment_order_id
        where o.delivery_confirmed_time is not null order by o.payment_order_id""",
    "wallet.pending_pay_ins": """
        select substr(cause, 8) as payment_order_id from pending_credit where cause like 'PAY_IN/%' order by payment_order_id""",
    "payment.unapplied": "select * from unapplied_charge order by unapplied_charge_id",
    "ledger.unapplied": """
        select t.cause_id, t.sequence, e.place, a.account, e.currency, e.amount
        from tx t join entry e on e.book = t.book and e.sequence = t.sequence join account a on a.account_id = e.account_id
        where t.kind = 'UNAPPLIED' and t.cause_id like 'u-%' order by t.cause_id, t.sequence, e.place""",
    "payment.outbox": "select unnest(aggregate_ids) as aggregate_id, unnest(versions) as version from outbox",
    "payout.payouts": "select * from payout order by payout_id",
    "payout.history": "select payout_id, version, from_state, to_state, cause, settled from payout_history order by payout_id, version",
    "payout.in_flight": """
        select distinct seller_account, currency from payout
        where not settled and state in ('PAID', 'RETURNED', 'FAILED', 'REJECTED', 'CANCELLED')""",
    "payout.due": """
        with o as (
            select 'p-' || payout_id as demand_id from payout where not settled
            union all select 'd-' || payout_destination_id from payout_destination where state = 'PENDING_VERIFICATION'),
        l as (
            select case split_part(subject, '/', 1) when 'payouts' then 'p-' else 'd-' end || split_part(subject, '/', 2) as demand_id
            from dead_letter where state = 'OPEN'),
        d as (select demand_id, next_attempt_time from due)
        select demand_id, o.demand_id as open, d.demand_id is not null as listed, d.next_attempt_time is not null as due, l.demand_id is not null as set_aside
        from o full join d using (demand_id) full join l using (demand_id) order by demand_id""",
    "payout.transfers": """
        select t.*, p.version
        from transfer t join payout p on p.payout_id = t.payout_id order by t.payout_id, t.provider_reference""",
    "payout.facts": """
        select (case when b.is_return then 'PAYOUT_RETURN' when t.fit = 'OTHER_CURRENCY' then 'UNAPPLIED' else 'PAYOUT' end || '/' || t.cause_id)
                collate "C" as cause,
            b.is_return, t.*, p.seller_account, p.amount as payout_amount, p.fee as payout_fee, p.currency as payout_currency, p.settled
        from transfer t join payout p on p.payout_id = t.payout_id
        cross join lateral (select false as is_return union all select true where t.returned_amount is not null) b order by cause""",
    "payout.outbox": "select unnest(aggregate_ids) as aggregate_id, unnest(versions) as version from outbox",
    "wallet.payout_holds": "select hold_id, seller_account, currency, amount, captured_amount, state from hold where purpose = 'PAYOUT' order by hold_id",
    "wallet.payouts": """
        select cause, seller_account, currency, case kind when 'DEBIT' then -amount else amount end as amount from wallet_entry
        where (kind = 'DEBIT' and cause like 'PAYOUT/%') or (kind = 'CREDIT' and starts_with(cause, 'PAYOUT_RETURN/')) order by cause""",
    "ledger.payouts": """
        select (t.kind || '/' || t.cause_id) collate "C" as cause, t.sequence, e.place, a.account, e.currency, e.amount
        from tx t join entry e on e.book = t.book and e.sequence = t.sequence join account a on a.account_id = e.account_id
        where t.kind in ('PAYOUT', 'PAYOUT_RETURN') or (t.kind = 'UNAPPLIED' and t.cause_id like 't-%')
        order by cause, t.sequence, e.place""",
    "event.head": "select cursor from head",
    "event.events": "select cursor, aggregate_id, aggregate_version from event order by cursor",
    "event.by_aggregate": """
        select aggregate_id, aggregate_version from event where starts_with(aggregate_id, :prefix) order by aggregate_id, aggregate_version""",
}


class Reader:
    """Reads each schema by a role that can only read it. `url`: a schema's database."""

    def __init__(self, url: Callable[[str], str]) -> None:
        self._url = url
        self._engines: dict[str, Engine] = {}

    @contextmanager
    def at_one_moment(self) -> Iterator[Callable[..., Iterator[Row[Any]]]]:
        """What opens queries, each on a connection of its own: rows in the query's order, without holding them.

        All that lies in one database is read as it stood at one moment, whatever goes on meanwhile; each further database at a moment of its own.
        """
        snapshots: dict[URL, str] = {}
        with ExitStack() as held:

            def read(name: str, **parameters: Any) -> Iterator[Row[Any]]:
                engine = self._engine(name.partition(".")[0])
                database = engine.url.set(username="-", password="-")  # noqa: S106 - whoever asks
                if database not in snapshots:
                    first = held.enter_context(
                        engine.connect()
                    )  # a snapshot lasts as long as its transaction, which idles as long as all checks take
                    first.exec_driver_sql("set local idle_in_transaction_session_timeout = 0")
                    snapshots[database] = first.execute(text("select pg_export_snapshot()")).scalar_one()
                with engine.connect() as connection:
                    connection.exec_driver_sql(f"set transaction snapshot '{snapshots[database]}'")
                    yield from _rows(connection, name, parameters)

            yield read

    def _engine(self, schema: str) -> Engine:
        if schema not in self._engines:
            self._engines[schema] = create_engine(self._url(schema), max_overflow=-1, isolation_level="REPEATABLE READ")
        return self._engines[schema]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.dispose()


def _rows(connection: Connection, name: str, parameters: dict[str, Any]) -> Iterator[Row[Any]]:
    options = {"stream_results": True, "yield_per": _ROWS_AT_ONCE}
    yield from connection.execution_options(**options).execute(text(QUERIES[name]), parameters)
