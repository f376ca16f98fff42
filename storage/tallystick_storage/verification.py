"""What `tallystick verify` reads: whole tables as sorted streams, by a read-only role of each service, all as they stood at one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, Row, TextClause, create_engine, text

from tallystick_storage.migrations import SEALED_ON_UPDATE

_ROWS_AT_ONCE = 5000

SEALED_SCHEMAS = ("payment", "wallet", "payout", "event")
_SEALED_TABLES = """
    select c.relname as name,
        (select string_agg(format('t.%I', k.attname), ', ' order by array_position(i.indkey::int2[], k.attnum))
         from pg_index i join pg_attribute k on k.attrelid = i.indrelid and k.attnum = any (i.indkey)
         where i.indrelid = c.oid and i.indisprimary) as key,
        string_agg(case when a.attgenerated <> '' or a.attname = 'seal' then format('null::%s', format_type(a.atttypid, null))
            else format('t.%I', a.attname) end, ', ' order by a.attnum) as content
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = cast(:schema as regnamespace) and c.relkind = 'r'
        and exists (select from pg_attribute s where s.attrelid = c.oid and s.attname = 'seal' and not s.attisdropped)
    group by c.oid, c.relname order by c.relname"""
_BROKEN_SEALS = """
    select concat_ws(' ', {key}) as key, t.seal is null as missing from {table} t
    where {unsealed} and t.seal is distinct from sha256(record_send(row({content}))) order by {key} limit 50"""


def broken_seals(schema: str, table: str, key: str, content: str) -> str:
    """The query for the rows of a table that are not as their service wrote them; the other arguments are as `sealed_tables` gives them."""
    new = SEALED_ON_UPDATE.get(f"{schema}.{table}", "false")
    return _BROKEN_SEALS.format(table=table, key=key, content=content, unsealed=f"not (t.seal is null and coalesce({new}, false))")


# Rows that are not what follows from others of their schema: which they are, and what is wrong.
_WRONG = {
    "payment.wrong_orders": """
        select 'payment.payment_order ' || o.payment_order_id as name, w.what
        from payment_order o left join order_history f on f.payment_order_id = o.payment_order_id and f.version = 1
        left join order_history l on l.payment_order_id = o.payment_order_id and l.version = o.version
        left join order_history d on d.payment_order_id = o.payment_order_id and d.delivered and d.version = o.version
        left join checkout c on c.checkout_id = o.checkout_id
        cross join lateral (select case
            when o.create_time is distinct from f.create_time or o.create_time is distinct from c.create_time then 'was not created when its history says'
            when o.update_time is distinct from l.create_time then 'was not updated when its history says'
            when o.provider is distinct from c.provider and (o.attempt_count > 0 or o.provider is distinct from '') then 'is of another provider than its payment'
            when (o.failure_reason, o.decline_code) is distinct from (l.failure_reason, l.decline_code) then 'failed for another reason than its history says'
            when o.attempt_count is distinct from l.attempt_count then 'counts other attempts than its history'
            when (o.pending_reason, o.next_action_url) is distinct from (l.pending_reason, l.next_action_url) then 'waits for something else than its history says'
            when o.provider_reference is distinct from l.provider_reference then 'has another provider_reference than its history'
            when (o.delivery_confirmed_time is null) <> (d.version is null) or o.delivery_confirmed_time > d.create_time
                or o.delivery_confirmed_time < d.create_time and not exists (
                    select from order_history p where p.payment_order_id = d.payment_order_id and p.version = d.version - 1 and p.create_time = d.create_time)
                then 'was not delivered when its history says'
            when o.asked_fee <> o.platform_fee then 'has another fee than was asked for'
            when (o.resolve_by_time is not null) <> (o.status = 'PENDING' and o.pending_reason = 'BUYER_ACTION') then 'resolve_by_time is not of what it waits for'
            end as what) w
        where w.what is not null order by 1 limit 50""",
    "payment.wrong_payments": """
        select 'payment.checkout ' || c.checkout_id || ' or a payment.payment_order of it' as name, 'its content is not that of its fingerprint' as what
        from checkout c
        cross join lateral (
            select case when c.expire_time is null then '' when isfinite(c.expire_time)
                then trunc(extract(epoch from c.expire_time) * 1000000)::text else 'never' end as micros) t
        cross join lateral (
            select string_agg(octet_length(o.payment_order_id) || ':' || o.payment_order_id || octet_length(o.buyer_account) || ':' || o.buyer_account || octet_length(o.seller_account) || ':' || o.seller_account || octet_length(o.amount::text) || ':' || o.amount::text || octet_length(o.currency) || ':' || o.currency || octet_length(coalesce(o.asked_fee::text, '')) || ':' || coalesce(o.asked_fee::text, ''), '' order by o.payment_order_id) as lines
            from payment_order o where o.checkout_id = c.checkout_id) o
        where c.fingerprint is distinct from sha256(convert_to(octet_length(c.checkout_id) || ':' || c.checkout_id
                || octet_length(c.owner) || ':' || c.owner
                || octet_length(c.buyer_info) || ':' || c.buyer_info
                || octet_length(c.seller_info) || ':' || c.seller_info
                || octet_length(c.buyer_country) || ':' || c.buyer_country
                || octet_length(c.payment_token) || ':' || c.payment_token
                || octet_length(c.payment_method_type) || ':' || c.payment_method_type
                || octet_length(c.charging) || ':' || c.charging
                || octet_length(c.on_partial) || ':' || c.on_partial
                || octet_length(t.micros) || ':' || t.micros || o.lines, 'UTF8'))
        order by 1 limit 50""",
    "payment.wrong_unpaid": """
        select 'payment.checkout_unpaid ' || checkout_id as name, 'is not what its payment is' as what
        from checkout_unpaid u full join (select * from checkout where payment_state <> 'PAID') c using (checkout_id)
        where (u.owner, u.payment_state, u.create_time) is distinct from (c.owner, c.payment_state, c.create_time) order by 1 limit 50""",
    "payment.wrong_attempts": """
        select 'payment.attempt ' || o.charge_id as name, 'has ' || a.n || ' attempts, but its orders count ' || max(o.attempt_count) as what
        from payment_order o cross join lateral (select count(*) as n from attempt a where a.demand_id = o.charge_id) a
        group by o.charge_id, a.n having max(o.attempt_count) is distinct from a.n order by 1 limit 50""",
    "payment.wrong_new_attempts": """
        select 'payment.attempt ' || a.demand_id || ' ' || a.number as name, 'is not of its payment, or begins at another time' as what
        from attempt a left join checkout c on c.checkout_id = a.checkout_id
        where c.checkout_id is null or a.provider <> c.provider or a.number = 1 and a.start_time <> c.create_time
            or right(a.provider_key, length(a.demand_id || a.number) + 1) <> a.demand_id || '-' || a.number
        order by 1 limit 50""",
    "payout.wrong_attempts": """
        select 'payout.attempt p-' || p.payout_id as name, 'has ' || a.n || ' attempts as its payout is, which counts ' || p.attempt_count as what
        from payout p cross join lateral (
            select count(*) filter (where a.amount = p.net_amount and a.currency = p.currency and a.provider = p.provider) as n, count(*) as every
            from attempt a where a.demand_id = 'p-' || p.payout_id) a
        where a.n <> p.attempt_count or a.n <> a.every order by 1 limit 50""",
    "payout.wrong_states": """
        select 'payout.payout_in_state ' || payout_id as name, 'is not what its payout is' as what
        from payout_in_state s full join (select * from payout where state not in ('CREATED', 'READY', 'SUBMITTING', 'PAID')) p using (payout_id)
        where (s.owner, s.state, s.create_time) is distinct from (p.owner, p.state, p.create_time) order by 1 limit 50""",
    "payout.wrong_batches": """
        select 'payout.payout_batch_item of payout.payout_batch ' || b.payout_batch_id as name,
            'are ' || i.n || ', of which ' || i.refused || ' are refused; the batch counts ' || b.collected_count || ' and ' || b.refused_count as what
        from payout_batch b cross join lateral (
            select count(*) as every, count(*) filter (where i.state <> 'ASKED') as n, count(*) filter (where i.state = 'REFUSED') as refused,
                count(*) filter (where i.state = 'MADE' and not exists (
                    select from payout p where p.payout_id = i.payout_id and p.payout_batch_id = i.payout_batch_id)) as lost
            from payout_batch_item i where i.payout_batch_id = b.payout_batch_id) i
        where (i.n, i.refused, i.lost) <> (b.collected_count, b.refused_count, 0) or not b.is_run and i.every <> b.item_count order by 1 limit 50""",
    "ledger.wrong_accounts": """
        select 'ledger.account ' || account || ' ' || currency as name, 'was opened at no time' as what
        from account where not isfinite(create_time) order by 1 limit 50""",
    "wallet.wrong_holds": """
        select 'wallet.hold ' || e.cause as name, 'is not what wallet.wallet_entry says: placed for ' || e.amount as what
        from wallet_entry e left join hold h on h.hold_id = e.cause
        left join wallet_entry n on n.kind in ('HOLD_CAPTURED', 'HOLD_RELEASED', 'HOLD_EXPIRED') and n.cause = e.cause
        where e.kind = 'HOLD_PLACED' and (h.seller_account, h.currency, h.amount, h.create_time, 'HOLD_' || h.state, h.end_time)
            is distinct from (e.seller_account, e.currency, e.amount, e.create_time, coalesce(n.kind, 'HOLD_OPEN'), n.create_time)
        union all
        select 'wallet.hold ' || h.hold_id, 'was never placed'
        from hold h where h.state <> 'SEALED' and not exists (select from wallet_entry e where e.kind = 'HOLD_PLACED' and e.cause = h.hold_id)
        order by 1 limit 50""",
    "wallet.wrong_sellers": """
        select 'wallet.seller_assignment of wallet.seller ' || s.seller_account as name,
            a.n || ' were approved since its first owner, but it is at version ' || s.version as what
        from seller s cross join lateral (
            select count(*) as n from seller_assignment a
            where a.seller_account = s.seller_account and a.state = 'APPROVED' and a.seller_version between 2 and s.version) a
        where a.n <> s.version - 1 order by 1 limit 50""",
    "wallet.wrong_policies": """
        select 'wallet.wallet_policy of wallet.wallet ' || w.seller_account || ' ' || w.currency as name, 'the wallet is not what its policies say' as what
        from wallet w left join wallet_policy p on p.seller_account = w.seller_account and p.currency = w.currency and p.version = w.policy_version
        left join wallet_entry e on e.seller_account = w.seller_account and e.currency = w.currency and e.number = w.version
        cross join lateral (
            select count(*) as n from wallet_policy n where n.seller_account = w.seller_account and n.currency = w.currency
                and n.version between 1 and w.policy_version) n
        where n.n <> w.policy_version or w.frozen is distinct from coalesce(p.frozen, false)
            or p.version is not null and w.release_delay is distinct from p.release_delay
            or w.update_time <> greatest(p.create_time, e.create_time)
        union all
        select 'wallet.wallet_policy ' || p.seller_account || ' ' || p.currency || ' ' || p.version, 'is beyond its wallet'
        from wallet_policy p where not exists (
            select from wallet w where w.seller_account = p.seller_account and w.currency = p.currency and w.policy_version >= p.version)
        order by 1 limit 50""",
}
_OPERATED = """
        select 'deadLetters/' || dead_letter_id as aggregate_id, case when state = 'OPEN' then 1 else 2 end as version, '{schema}.dead_letter' as name
        from dead_letter
        union all select 'alerts/' || alert_id, case when end_time is null then 1 else 2 end, '{schema}.alert' from alert"""
_UNPUBLISHED = """
        select unnest(aggregate_ids) as aggregate_id, unnest(versions) as version from outbox union all select aggregate_id, version from refused_event"""
# The version of each thing that has no history of its own: its last event has the same.
_VERSIONS = {
    "payment.versions": f"""select * from ({_OPERATED.format(schema="payment")}
        union all select 'payments/' || checkout_id, version, 'payment.checkout' from checkout
        union all select 'unappliedCharges/' || unapplied_charge_id, version, 'payment.unapplied_charge' from unapplied_charge) v
        order by aggregate_id collate "C" """,
    "payout.versions": f"""select * from ({_OPERATED.format(schema="payout")}
        union all select 'payoutDestinations/' || payout_destination_id, version, 'payout.payout_destination' from payout_destination
        union all select 'payoutBatches/' || payout_batch_id, version, 'payout.payout_batch' from payout_batch
        union all select 'payoutSchedules/' || case seller_account when '' then '-' else seller_account end || '/' || currency, version,
            'payout.payout_schedule' from payout_schedule) v
        order by aggregate_id collate "C" """,
    "wallet.policy_versions": """
        select * from (
            select 'walletPolicies/' || seller_account || '/' || currency as aggregate_id, policy_version as version, 'wallet.wallet_policy' as name
            from wallet where policy_version > 0
            union all select 'sellers/' || seller_account, version, 'wallet.seller' from seller) v
        order by aggregate_id collate "C" """,
    "event.last_versions": """
        select aggregate_id, max(aggregate_version) as version, count(*) as events from event
        where split_part(aggregate_id, '/', 1) in (
            'deadLetters', 'alerts', 'payments', 'unappliedCharges', 'payoutDestinations', 'payoutBatches', 'payoutSchedules', 'walletPolicies', 'sellers')
        group by aggregate_id order by aggregate_id""",
}
WRONG = tuple(_WRONG)
"""The queries that find rows that are wrong, each a column `name` and one `what`."""

QUERIES = {
    **{f"{schema}.sealed_tables": _SEALED_TABLES for schema in SEALED_SCHEMAS},
    **{f"{schema}.broken_seals": "" for schema in SEALED_SCHEMAS},  # the statement comes with the call
    "ledger.heads": "select book, sequence, hash, post_time from head order by book",
    "ledger.relayed": "select book, sequence from relayed order by book",
    "ledger.transactions": """
        select t.sequence, t.fingerprint, t.kind, t.cause_id, t.caller, t.n, t.description, t.reverses, t.effective_time, t.post_time, t.previous_hash, t.hash,
            e.place, e.number, e.account_id, a.account, a.currency as account_currency, e.currency, e.amount, e.balance_after
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
    "wallet.outbox": _UNPUBLISHED,
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
    "payment.unpaid_successes": """
        select 'payment.payment_order ' || o.payment_order_id as name from payment_order o
        where o.status = 'SUCCESS' and not exists (
            select from attempt a where a.demand_id = o.charge_id and a.outcome = 'SUCCEEDED' and a.provider_reference = o.provider_reference)
        order by 1 limit 50""",
    "payment.shared_references": """
        select provider, provider_reference, count(*) as charges from (
            select provider, provider_reference, demand_id from attempt where outcome = 'SUCCEEDED'
            union select provider, provider_reference, charge_id from unapplied_charge) c
        group by provider, provider_reference having count(*) > 1 order by provider, provider_reference""",
    "payment.wrong_money": """
        select coalesce(m.provider, c.provider) || ' ' || coalesce(m.provider_reference, c.provider_reference) as reference,
            case when m.charge_id is null then 'is missing' when c.charge_id is null then 'names what no charge took'
                else 'names ' || m.charge_id || ', but ' || c.charge_id || ' took it' end as what
        from provider_money m full join (
            select provider, provider_reference, demand_id as charge_id from attempt where outcome = 'SUCCEEDED'
            union select provider, provider_reference, charge_id from unapplied_charge) c
            on m.provider = c.provider and m.provider_reference = c.provider_reference
        where m.charge_id is distinct from c.charge_id order by 1 limit 50""",
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
    "payment.outbox": _UNPUBLISHED,
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
    "payout.outbox": _UNPUBLISHED,
    "wallet.payout_holds": """
        select substr(hold_id, 9) as payout_id, seller_account, currency, amount, captured_amount, state
        from hold where purpose = 'PAYOUT' order by payout_id""",
    "wallet.payouts": """
        select cause, seller_account, currency, case kind when 'DEBIT' then -amount else amount end as amount from wallet_entry
        where (kind = 'DEBIT' and cause like 'PAYOUT/%') or (kind = 'CREDIT' and starts_with(cause, 'PAYOUT_RETURN/')) order by cause""",
    "ledger.payouts": """
        select (t.kind || '/' || t.cause_id) collate "C" as cause, t.sequence, e.place, a.account, e.currency, e.amount
        from tx t join entry e on e.book = t.book and e.sequence = t.sequence join account a on a.account_id = e.account_id
        where t.kind in ('PAYOUT', 'PAYOUT_RETURN') or (t.kind = 'UNAPPLIED' and t.cause_id like 't-%')
        order by cause, t.sequence, e.place""",
    **_WRONG,
    **_VERSIONS,
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
    yield from connection.execution_options(**options).execute(statement(name, parameters), parameters)


def statement(name: str, parameters: dict[str, Any]) -> TextClause:
    """The query of that name, or the one that comes with the parameters, from which it is taken."""
    return text(parameters.pop("statement", QUERIES[name]))
