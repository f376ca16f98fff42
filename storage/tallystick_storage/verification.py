"""What `tallystick verify` reads: whole tables as sorted streams, by a read-only role of each service, all as they stood at one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, Row, TextClause, create_engine, text

from tallystick_storage.migrations import SEALED_ON_UPDATE

_ROWS_AT_ONCE = 5000
_SCHEMAS = ("payment", "payout", "wallet", "ledger", "event")
"""In the order in which their moments are taken."""
_MAY_REST = "set local idle_in_transaction_session_timeout = 0"  # a transaction idles while a check reads another's rows
_PLANNED_FOR_ALL_ROWS = "set local work_mem = '32MB'; set local cursor_tuple_fraction = 1; set local jit = off"

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
    where {unsealed} and t.seal is distinct from sha256(record_send(row({content}))) order by {key}"""


def broken_seals(schema: str, table: str, key: str, content: str) -> str:
    """The query for the rows of a table that are not as their service wrote them; the other arguments are as `sealed_tables` gives them."""
    new = SEALED_ON_UPDATE.get(f"{schema}.{table}", "false")
    return _BROKEN_SEALS.format(table=table, key=key, content=content, unsealed=f"not (t.seal is null and coalesce({new}, false))")


def _canonical(*expressions: str) -> str:
    """The SQL for the canonical text of some values, as `tallystick_core.canonical` makes it."""
    return " || ".join(f"octet_length({one}::text) || ':' || {one}" for one in expressions)


def _micros(time: str) -> str:
    return f"trunc(extract(epoch from {time}) * 1000000)"


# A transaction's entries as one text, as `tallystick_server.process.checks.report.text_of` writes them.
_LINES = """(select string_agg(a.account || ' ' || e.currency || ' ' || e.amount, ', ' order by e.place)
            from entry e join account a on a.account_id = e.account_id where e.book = t.book and e.sequence = t.sequence)"""
# The versions of something, as one text for each thousand, so that no row grows without bound.
_VERSIONS = "{0} / 1000 as block, string_agg({0}::text, ' ' order by {0}) as versions"
_UNPUBLISHED = f"""
    select aggregate_id, {_VERSIONS.format("version")}
    from (
        select unnest(aggregate_ids) collate "C" as aggregate_id, unnest(versions) as version from outbox
        union all select aggregate_id, version from refused_event) o
    group by aggregate_id, block order by aggregate_id, block"""
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
            when o.delivery_confirmed_time is distinct from d.create_time then 'was not delivered when its history says'
            when o.asked_fee <> o.platform_fee then 'has another fee than was asked for'
            when o.resolve_by_time is distinct from l.resolve_by_time then 'has another resolve_by_time than its history'
            when (o.resolve_by_time is not null) <> (o.status = 'PENDING' and o.pending_reason = 'BUYER_ACTION') then 'resolve_by_time is not of what it waits for'
            end as what) w
        where w.what is not null order by 1""",
    "payment.wrong_payments": f"""
        select 'payment.checkout ' || c.checkout_id || ' or a payment.payment_order of it' as name, 'its content is not that of its fingerprint' as what
        from checkout c
        join (
            select o.checkout_id, string_agg({
        _canonical("o.payment_order_id", "o.buyer_account", "o.seller_account", "o.amount", "o.currency", "coalesce(o.asked_fee::text, '')")
    }, '' order by o.payment_order_id) as lines
            from payment_order o group by o.checkout_id) o on o.checkout_id = c.checkout_id
        cross join lateral (
            select case when c.expire_time is null then '' when isfinite(c.expire_time) then {
        _micros("c.expire_time")
    }::text else 'never' end as micros) t
        where c.fingerprint is distinct from sha256(convert_to({
        _canonical(
            "c.checkout_id",
            "c.owner",
            "c.buyer_info",
            "c.seller_info",
            "c.buyer_country",
            "c.payment_token",
            "c.payment_method_type",
            "c.charging",
            "c.on_partial",
            "t.micros",
        )
    } || o.lines, 'UTF8'))
        order by 1""",
    "payment.wrong_unpaid": """
        select 'payment.checkout_unpaid ' || checkout_id as name, 'is not what its payment is' as what
        from checkout_unpaid u full join (select * from checkout where payment_state <> 'PAID') c using (checkout_id)
        where (u.owner, u.payment_state, u.create_time) is distinct from (c.owner, c.payment_state, c.create_time) order by 1""",
    "payment.wrong_attempts": """
        select 'payment.attempt ' || o.charge_id as name, 'has ' || coalesce(a.n, 0) || ' attempts, but its orders count ' || o.n as what
        from (select charge_id, max(attempt_count) as n from payment_order group by charge_id) o
        left join (select demand_id, count(*) as n from attempt group by demand_id) a on a.demand_id = o.charge_id
        where o.n <> coalesce(a.n, 0) order by 1""",
    "payment.wrong_new_attempts": """
        select 'payment.attempt ' || a.demand_id || ' ' || a.number as name, 'is not of its payment, or begins at another time' as what
        from attempt a left join checkout c on c.checkout_id = a.checkout_id
        where c.checkout_id is null or a.provider <> c.provider or a.number = 1 and a.start_time <> c.create_time
            or right(a.provider_key, length(a.demand_id || a.number) + 1) <> a.demand_id || '-' || a.number
        order by 1""",
    "payment.wrong_new_due": """
        select 'payment.due ' || d.demand_id as name, 'is not as it was made with its payment' as what
        from due d left join attempt a on a.demand_id = d.demand_id and a.number = 1 left join checkout c on c.checkout_id = a.checkout_id
        where d.seal is null
            and (d.provider, d.next_attempt_time, d.since, d.sent_time, d.phase) is distinct from (c.provider, c.create_time, c.create_time, null, '')
        order by 1""",
    "payout.wrong_attempts": """
        select 'payout.attempt p-' || p.payout_id as name, 'has ' || a.n || ' attempts as its payout is, which counts ' || p.attempt_count as what
        from payout p cross join lateral (
            select count(*) filter (where a.amount = p.net_amount and a.currency = p.currency and a.provider = p.provider) as n, count(*) as every
            from attempt a where a.demand_id = 'p-' || p.payout_id) a
        where a.n <> p.attempt_count or a.n <> a.every order by 1""",
    "payout.wrong_states": """
        select 'payout.payout_in_state ' || payout_id as name, 'is not what its payout is' as what
        from payout_in_state s full join (select * from payout where state not in ('CREATED', 'READY', 'SUBMITTING', 'PAID')) p using (payout_id)
        where (s.owner, s.state, s.create_time) is distinct from (p.owner, p.state, p.create_time) order by 1""",
    "payout.wrong_batches": """
        select 'payout.payout_batch_item of payout.payout_batch ' || b.payout_batch_id as name,
            'are ' || i.n || ', of which ' || i.refused || ' are refused; the batch counts ' || b.collected_count || ' and ' || b.refused_count as what
        from payout_batch b cross join lateral (
            select count(*) as every, count(*) filter (where i.state <> 'ASKED') as n, count(*) filter (where i.state = 'REFUSED') as refused,
                count(*) filter (where i.state = 'MADE' and not exists (
                    select from payout p where p.payout_id = i.payout_id and p.payout_batch_id = i.payout_batch_id)) as lost
            from payout_batch_item i where i.payout_batch_id = b.payout_batch_id) i
        where (i.n, i.refused, i.lost) <> (b.collected_count, b.refused_count, 0) or not b.is_run and i.every <> b.item_count order by 1""",
    "ledger.wrong_accounts": """
        select 'ledger.account ' || account || ' ' || currency as name, 'was opened at no time' as what
        from account where not isfinite(create_time) order by 1""",
    "wallet.wrong_holds": """
        select 'wallet.hold ' || e.cause as name, 'is not what wallet.wallet_entry says: placed for ' || e.amount as what
        from wallet_entry e left join hold h on h.hold_id = e.cause
        left join wallet_entry n on n.kind in ('HOLD_CAPTURED', 'HOLD_RELEASED', 'HOLD_EXPIRED') and n.cause = e.cause
        where e.kind = 'HOLD_PLACED' and (h.seller_account, h.currency, h.amount, h.create_time, 'HOLD_' || h.state, h.end_time)
            is distinct from (e.seller_account, e.currency, e.amount, e.create_time, coalesce(n.kind, 'HOLD_OPEN'), n.create_time)
        union all
        select 'wallet.hold ' || h.hold_id, 'was never placed'
        from hold h where h.state <> 'SEALED' and not exists (select from wallet_entry e where e.kind = 'HOLD_PLACED' and e.cause = h.hold_id)
        order by 1""",
    "wallet.wrong_sellers": """
        select 'wallet.seller_assignment of wallet.seller ' || s.seller_account as name,
            a.n || ' were approved since its first owner, but it is at version ' || s.version as what
        from seller s cross join lateral (
            select count(*) as n from seller_assignment a
            where a.seller_account = s.seller_account and a.state = 'APPROVED' and a.seller_version between 2 and s.version) a
        where a.n <> s.version - 1 order by 1""",
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
        order by 1""",
}
_OPERATED = """
        select 'deadLetters/' || dead_letter_id as aggregate_id, case when state = 'OPEN' then 1 else 2 end as version, '{schema}.dead_letter' as name
        from dead_letter
        union all select 'alerts/' || alert_id, case when end_time is null then 1 else 2 end, '{schema}.alert' from alert"""
# The version of each thing that has no history of its own: its last event has the same.
_LAST_VERSIONS = {
    "payment.last_versions": f"""select * from ({_OPERATED.format(schema="payment")}
        union all select 'payments/' || checkout_id, version, 'payment.checkout' from checkout
        union all select 'unappliedCharges/' || unapplied_charge_id, version, 'payment.unapplied_charge' from unapplied_charge) v
        order by aggregate_id collate "C" """,
    "payout.last_versions": f"""select * from ({_OPERATED.format(schema="payout")}
        union all select 'payoutDestinations/' || payout_destination_id, version, 'payout.payout_destination' from payout_destination
        union all select 'payoutBatches/' || payout_batch_id, version, 'payout.payout_batch' from payout_batch
        union all select 'payoutSchedules/' || case seller_account when '' then '-' else seller_account end || '/' || currency, version,
            'payout.payout_schedule' from payout_schedule) v
        order by aggregate_id collate "C" """,
    "wallet.last_versions": """
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
    "ledger.tx_count": "select count(*) as rows from tx",
    "ledger.last": "select sequence, hash, post_time from tx order by book desc, sequence desc limit 1",
    "ledger.wrong_transactions": f"""
        select 'ledger.tx ' || t.book || '-' || t.sequence || case when w.of_entries then ' in ledger.entry' else '' end as name, w.what
        from (
            select t.*, e.n as entries, e.numbered, e.balanced, lag(t.sequence, 1, 0::bigint) over b as sequence_before,
                lag(t.hash, 1, cast(:genesis as bytea)) over b as hash_before, lag(t.post_time) over b as time_before,
                t.kind = any(:kinds) as known_kind,
                t.fingerprint = sha256(convert_to({
        _canonical("t.kind", "t.cause_id", "t.description", "''", "coalesce(t.reverses, 0)")
    } || e.lines, 'UTF8'))
                    and t.effective_time = t.post_time
                or t.fingerprint = sha256(convert_to(
                    {_canonical("t.kind", "t.cause_id", "t.description", _micros("t.effective_time"), "coalesce(t.reverses, 0)")} || e.lines, 'UTF8'))
                    as has_fingerprint,
                t.hash = sha256(t.previous_hash || convert_to({
        _canonical(
            "'main'",
            "t.sequence",
            "t.kind",
            "t.cause_id",
            "t.caller",
            "t.description",
            "coalesce(t.reverses, 0)",
            _micros("t.effective_time"),
            _micros("t.post_time"),
        )
    } || e.lines, 'UTF8')) as has_hash
            from tx t left join (
                select e.book, e.sequence, count(*) as n, min(e.place) = 1 and max(e.place) = count(*) as numbered,
                    case when min(e.currency) = max(e.currency) then sum(e.amount) = 0 else not exists (
                        select from entry s where s.book = e.book and s.sequence = e.sequence group by s.currency having sum(s.amount) <> 0) end as balanced,
                    string_agg({_canonical("coalesce(a.account, '')", "e.currency", "e.amount")}, '' order by e.place) as lines
                from entry e left join account a on a.account_id = e.account_id group by e.book, e.sequence) e
                on e.book = t.book and e.sequence = t.sequence
            window b as (order by t.book, t.sequence)) t
        cross join lateral (values
            (false, case when t.sequence <> t.sequence_before + 1 then 'follows ' || t.sequence_before || ', with a gap' end),
            (false, case when t.previous_hash <> t.hash_before then 'previous_hash is not the hash of the transaction before' end),
            (false, case when t.post_time < t.time_before then 'was posted before the transaction before it' end),
            (false, case when (t.entries = t.n and t.n >= 2) is not true then 'has ' || coalesce(t.entries, 0) || ' entries, and says ' || t.n end),
            (true, case when not t.numbered then 'its entries are not numbered 1, 2, …' end),
            (false, case when not t.balanced then 'its entries do not sum to zero' end),
            (false, case when not t.known_kind then 'is of the kind ' || quote_literal(t.kind) || ', which does not exist'
                when t.has_fingerprint is not true then 'its fingerprint is not that of its content' end),
            (false, case when t.known_kind and t.has_hash is not true then 'its hash is not that of its content' end)) w (of_entries, what)
        where (t.sequence = t.sequence_before + 1 and t.previous_hash = t.hash_before and coalesce(t.post_time >= t.time_before, true)
                and t.entries = t.n and t.n >= 2 and t.numbered and t.balanced and t.known_kind and t.has_fingerprint and t.has_hash) is not true
            and w.what is not null
        order by t.book, t.sequence""",
    "ledger.wrong_entries": """
        select 'ledger.entry ' || e.sequence || '/' || e.place as name, w.what
        from (
            select e.*, a.currency as account_currency, row_number() over w as nth, sum(e.amount) over w as so_far
            from entry e left join account a on a.account_id = e.account_id
            window w as (partition by e.account_id order by e.book, e.sequence, e.place)) e
        cross join lateral (values
            (case when e.account_currency is distinct from e.currency then 'is in another currency than its account' end),
            (case when e.number <> e.nth then 'is number ' || e.number || ' of its account, and must be ' || e.nth end),
            (case when e.balance_after <> e.so_far then 'balance_after is ' || e.balance_after || ', but the entries so far sum to ' || e.so_far end)) w (what)
        where (e.account_currency = e.currency and e.number = e.nth and e.balance_after = e.so_far) is not true and w.what is not null
        order by e.sequence, e.place""",
    "ledger.strays": """
        select 'ledger.entry ' || e.sequence || '/' || e.place as name, 'has no transaction' as what
        from entry e where not exists (select from tx t where t.book = e.book and t.sequence = e.sequence) order by e.sequence, e.place""",
    "ledger.unbalanced": """
        select 'ledger.entry in ' || currency as name, 'all entries sum to ' || sum(amount) || ', not to zero' as what
        from entry group by currency having sum(amount) <> 0 order by currency""",
    "ledger.wrong_balances": """
        select 'ledger.account ' || a.account || ' ' || a.currency as name, w.what
        from account a left join (select account_id, sum(amount) as amount, count(*) as n from entry group by account_id) e on e.account_id = a.account_id
        cross join lateral (values
            (case when a.balance <> coalesce(e.amount, 0) then 'balance is ' || a.balance || ', but its entries sum to ' || coalesce(e.amount, 0) end),
            (case when a.entry_count <> coalesce(e.n, 0) then 'entry_count is ' || a.entry_count || ', but it has ' || coalesce(e.n, 0) || ' entries' end)
            ) w (what)
        where (a.balance, a.entry_count) is distinct from (coalesce(e.amount, 0), coalesce(e.n, 0)) and w.what is not null
        order by a.account, a.currency""",
    "ledger.repeated": """
        select 'ledger.tx ' || kind || ' ' || cause_id as name, 'is booked ' || count(*) || ' times' as what
        from tx group by cause_id, kind having count(*) > 1 order by kind, cause_id""",
    "ledger.wrong_reversals": """
        select 'ledger.tx ' || book || '-' || sequence as name, 'is a reversal of nothing, or no reversal of what it names' as what
        from tx where (kind = 'REVERSAL') <> (reverses is not null) or reverses >= sequence order by book, sequence""",
    "ledger.pay_ins": f"""
        select t.cause_id, {_LINES} as lines from tx t where t.kind = 'PAY_IN' order by t.cause_id, t.sequence""",
    "ledger.sellers": """
        select substr(account, 9) as seller_account, currency, balance from account
        where account like 'sellers/%' and entry_count > 0 order by seller_account, currency""",
    "wallet.wallet_count": "select count(*) as rows from wallet",
    "wallet.balances": "select seller_account, currency, balance from wallet order by seller_account, currency",
    "wallet.wrong_entries": """
        select 'wallet.wallet_entry ' || e.seller_account || ' ' || e.currency || ' ' || e.number as name, w.what
        from (
            select e.*, e.balance - lag(e.balance, 1, 0::numeric) over w as moved, lag(e.number, 1, 0::bigint) over w as number_before
            from (
                select seller_account, currency, number, kind, amount, pending_after + available_after + held_after - owed_after as balance,
                    amount * ((kind = 'CREDIT')::int - (kind in ('DEBIT', 'HOLD_CAPTURED'))::int) as change
                from wallet_entry) e
            window w as (partition by e.seller_account, e.currency order by e.number)) e
        cross join lateral (values
            (case when e.number <> e.number_before + 1 then 'follows ' || e.number_before || ', with a gap' end),
            (case when e.moved <> e.change then 'moves the balance by ' || e.moved || ', which is not its ' || e.kind || ' of ' || e.amount end)) w (what)
        where (e.number = e.number_before + 1 and e.moved = e.change) is not true and w.what is not null
        order by e.seller_account, e.currency, e.number""",
    "wallet.wrong_wallets": """
        select 'wallet.wallet ' || w.seller_account || ' ' || w.currency as name, x.what
        from wallet w
        left join lateral (
            select e.number, e.pending_after, e.available_after, e.held_after, e.owed_after from wallet_entry e
            where e.seller_account = w.seller_account and e.currency = w.currency order by e.number desc limit 1) e on true
        left join (select seller_account, currency, sum(amount) as amount from hold where state = 'OPEN' group by seller_account, currency) h
            on h.seller_account = w.seller_account and h.currency = w.currency
        left join (select seller_account, currency, sum(amount) as amount from pending_credit group by seller_account, currency) p
            on p.seller_account = w.seller_account and p.currency = w.currency
        cross join lateral (values
            (case when (w.version, w.pending, w.available, w.held, w.owed) is distinct from (coalesce(e.number, 0), coalesce(e.pending_after, 0),
                    coalesce(e.available_after, 0), coalesce(e.held_after, 0), coalesce(e.owed_after, 0))
                then format('is at version %s with (%s, %s, %s, %s), but its last entry says (%s, %s, %s, %s, %s)', w.version, w.pending, w.available, w.held,
                    w.owed, coalesce(e.number, 0), coalesce(e.pending_after, 0), coalesce(e.available_after, 0), coalesce(e.held_after, 0), coalesce(e.owed_after, 0))
                end),
            (case when least(w.pending, w.available, w.held, w.owed) < 0 or w.owed <> 0 and w.available <> 0
                    or w.balance <> w.pending + w.available + w.held - w.owed
                then 'balance is not pending + available + held - owed, or a part is wrong' end),
            (case when w.held <> coalesce(h.amount, 0) then 'holds ' || w.held || ', but its open holds sum to ' || coalesce(h.amount, 0) end),
            (case when w.pending <> coalesce(p.amount, 0)
                then 'has ' || w.pending || ' pending, but its pending credits sum to ' || coalesce(p.amount, 0) end)) x (what)
        where x.what is not null order by w.seller_account, w.currency""",
    "wallet.missing": """
        select distinct 'wallet.wallet ' || e.seller_account || ' ' || e.currency as name, 'has entries and no wallet' as what
        from wallet_entry e where not exists (select from wallet w where w.seller_account = e.seller_account and w.currency = e.currency)
        order by name""",
    "wallet.wrong_pending": """
        select 'wallet.pending_credit ' || c.cause as name,
            case when r.cause is not null then 'is pending, but it was released' when e.amount is distinct from c.amount then 'is not what was credited'
                else 'is pending, though its time came long ago' end as what
        from pending_credit c left join wallet_entry e on e.kind = 'CREDIT' and e.cause = c.cause
        left join wallet_entry r on r.kind = 'RELEASE' and r.cause = c.cause
        where e.amount is distinct from c.amount or r.cause is not null
            or c.release_time < (select max(create_time) from mark) - interval '10 minutes'  -- after which work was still done
        order by c.cause""",
    "wallet.pay_ins": """
        select substr(cause, 8) as payment_order_id, seller_account, currency, amount from wallet_entry
        where kind = 'CREDIT' and cause like 'PAY_IN/%' order by payment_order_id""",
    "payment.checkout_count": "select count(*) as rows from checkout",
    "payment.order_count": "select count(*) as rows from payment_order",
    "payment.attempt_count": "select count(*) as rows from attempt",
    "payment.orders": """
        select payment_order_id, status, wallet_updated, ledger_updated, provider, buyer_account, seller_account, currency, amount, platform_fee, seller_amount
        from payment_order order by payment_order_id""",
    "payment.in_flight": """
        select distinct seller_account, currency collate "C" as currency from payment_order where status = 'SUCCESS' and not ledger_updated
        order by seller_account, currency""",
    "payment.wrong_history": """
        select 'payment.order_history ' || h.payment_order_id || ' ' || h.version as name,
            coalesce(h.from_status, 'None') || ' to ' || h.to_status || ' does not follow ' || coalesce(h.before, 'None') as what
        from (
            select h.*, row_number() over w as number, lag(h.to_status) over w as before, lag(h.stage, 1, 0) over w as stage_before, lag(h.waits) over w as waited
            from (
                select payment_order_id, version, from_status, to_status,
                    (wallet_updated and ledger_updated)::int + delivered::int as stage,  -- settled, then delivered: each once, in versions of their own
                    case when to_status = 'PENDING' then pending_reason || ' ' || next_action_url || ' ' || provider_reference end as waits
                from order_history) h
            window w as (partition by h.payment_order_id order by h.version)) h
        where (h.version = h.number and h.from_status is not distinct from h.before and (h.waits = h.waited) is not true
            and case when h.before is null then h.to_status = 'NOT_STARTED'
                else h.before || ' ' || h.to_status = any(:moves) and h.stage = h.stage_before + (h.before = 'SUCCESS' and h.to_status = 'SUCCESS')::int end
            ) is not true
        order by h.payment_order_id, h.version""",
    "payment.wrong_ends": """
        select 'payment.payment_order ' || o.payment_order_id as name, w.what
        from payment_order o left join order_history h on h.payment_order_id = o.payment_order_id and h.version = o.version
            and h.to_status = o.status and h.wallet_updated = o.wallet_updated and h.ledger_updated = o.ledger_updated
            and h.delivered = (o.delivery_confirmed_time is not null)
        left join order_history n on n.payment_order_id = o.payment_order_id and n.version = o.version + 1
        cross join lateral (values
            (case when h.version is null or n.version is not null then coalesce(
                (select 'is ' || o.status || ' at version ' || o.version || ', but its history ends in ' || l.to_status || ' at ' || l.version
                 from order_history l where l.payment_order_id = o.payment_order_id order by l.version desc limit 1), 'has no history') end),
            (case when o.seller_amount + o.platform_fee <> o.amount or o.platform_fee < 0 or o.seller_amount <= 0
                then 'seller''s share and fee do not sum to the amount' end)) w (what)
        where (h.version is null or n.version is not null or o.seller_amount + o.platform_fee <> o.amount or o.platform_fee < 0 or o.seller_amount <= 0)
            and w.what is not null
        order by o.payment_order_id""",
    "payment.missing_orders": """
        select distinct 'payment.payment_order ' || h.payment_order_id as name, 'has history and no order' as what
        from order_history h where not exists (select from payment_order o where o.payment_order_id = h.payment_order_id) order by name""",
    "payment.wrong_checkouts": """
        select 'payment.checkout ' || checkout_id as name, w.what
        from checkout c full join (
            select checkout_id, count(*) as n, count(*) filter (where not (status = 'SUCCESS' and wallet_updated and ledger_updated)) as unpaid,
                count(*) filter (where not (status = 'FAILED' or status = any(:final) and wallet_updated and ledger_updated)) as open
            from payment_order group by checkout_id) o using (checkout_id)
        cross join lateral (values
            (case when c.version is null then 'has orders and no checkout' when o.n is null then 'has no orders'
                when (c.order_count, c.unpaid_orders, c.open_orders) <> (o.n, o.unpaid, o.open) then format(
                    'counts %s unpaid and %s open orders; there are %s and %s', c.unpaid_orders, c.open_orders, o.unpaid, o.open) end),
            (case when c.is_payment_done <> (o.unpaid = 0) then 'is_payment_done is not what its orders say' end)) w (what)
        where (c.order_count = o.n and c.unpaid_orders = o.unpaid and c.open_orders = o.open and c.is_payment_done = (o.unpaid = 0)) is not true
            and w.what is not null
        order by checkout_id""",
    "payment.wrong_charges": """
        select 'payment.attempt ' || a.demand_id as name, w.what
        from (select demand_id, count(*) as n, min(number) as low, max(number) as high, count(*) filter (where outcome <> 'DECLINED') as alive
              from attempt group by demand_id) a
        cross join lateral (values
            (case when a.low <> 1 or a.high <> a.n then 'its attempts are not numbered 1, 2, …' end),
            (case when a.alive > 1 then 'has more than one attempt that is open or has succeeded' end)) w (what)
        where (a.low <> 1 or a.high <> a.n or a.alive > 1) and w.what is not null order by a.demand_id""",
    "payment.wrong_demands": """
        select 'payment.attempt ' || a.demand_id || ' ' || a.number as name, w.what
        from attempt a left join (
            select checkout_id, charge_id, sum(amount) as amount, min(currency) as low, max(currency) as high, count(*) as n,
                count(*) filter (where status = 'SUCCESS') as succeeded, count(*) filter (where status in ('EXECUTING', 'PENDING')) as open
            from payment_order where attempt_count > 0 group by checkout_id, charge_id) o on o.checkout_id = a.checkout_id and o.charge_id = a.demand_id
        left join unapplied_charge u on u.provider = a.provider and u.provider_reference = a.provider_reference
        cross join lateral (values
            (case when (o.amount, o.low, o.high) is distinct from (a.amount, a.currency, a.currency) then format(
                'demands %s %s, but its orders sum to %s %s', a.amount, a.currency, coalesce(o.amount::text, 'None'), coalesce(o.low, 'None')) end),
            (case when a.outcome = 'SUCCEEDED'  -- what it took is its orders', or unapplied, or still to be judged
                and not ((a.moved_amount, a.moved_currency) is not distinct from (a.amount, a.currency) and coalesce(o.n in (o.succeeded, o.open), true))
                and coalesce(o.open <> o.n, false) and (a.moved_amount, a.moved_currency) is distinct from (u.amount, u.currency)
                then 'took money that is no SUCCESS order''s share and no unapplied charge' end)) w (what)
        where ((o.amount, o.low, o.high) is distinct from (a.amount, a.currency, a.currency) or a.outcome = 'SUCCEEDED'
                and ((a.moved_amount, a.moved_currency) is distinct from (a.amount, a.currency) or o.n <> o.succeeded)) and w.what is not null
        order by a.demand_id, a.number""",
    "payment.unpaid_successes": """
        select 'payment.payment_order ' || o.payment_order_id as name, 'is SUCCESS without an attempt that succeeded' as what from payment_order o
        where o.status = 'SUCCESS' and not exists (
            select from attempt a where a.demand_id = o.charge_id and a.outcome = 'SUCCEEDED' and a.provider_reference = o.provider_reference)
        order by 1""",
    "payment.shared_references": """
        select 'payment.attempt ' || provider || ' ' || provider_reference as name, 'is the money of ' || count(*) || ' charges' as what from (
            select provider, provider_reference, demand_id from attempt where outcome = 'SUCCEEDED'
            union select provider, provider_reference, charge_id from unapplied_charge) c
        group by provider, provider_reference having count(*) > 1 order by provider, provider_reference""",
    "payment.wrong_money": """
        select 'payment.provider_money ' || coalesce(m.provider, c.provider) || ' ' || coalesce(m.provider_reference, c.provider_reference) as name,
            case when m.charge_id is null then 'is missing' when c.charge_id is null then 'names what no charge took'
                else 'names ' || m.charge_id || ', but ' || c.charge_id || ' took it' end as what
        from provider_money m full join (
            select provider, provider_reference, demand_id as charge_id from attempt where outcome = 'SUCCEEDED'
            union select provider, provider_reference, charge_id from unapplied_charge) c
            on m.provider = c.provider and m.provider_reference = c.provider_reference
        where m.charge_id is distinct from c.charge_id order by 1""",
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
    "ledger.unapplied": f"""
        select t.cause_id, {_LINES} as lines from tx t where t.kind = 'UNAPPLIED' and t.cause_id like 'u-%' order by t.cause_id, t.sequence""",
    "payout.payout_count": "select count(*) as rows from payout",
    "payout.payouts": "select payout_id, state, settled, version, seller_account, currency, amount from payout order by payout_id",
    "payout.wrong_history": """
        select 'payout.payout_history ' || h.payout_id || ' ' || h.version as name,
            coalesce(h.from_state, 'None') || ' to ' || h.to_state || ' does not follow ' || coalesce(h.before, 'None') as what
        from (
            select payout_id, version, from_state, to_state, cause, settled, row_number() over w as number, lag(to_state) over w as before
            from payout_history window w as (partition by payout_id order by version)) h
        where (h.version = h.number and h.from_state is not distinct from h.before
            and case when h.before is null then h.to_state = 'CREATED' and not h.settled
                when h.before = h.to_state then h.cause || ' ' || h.settled = any(:stayed)
                else h.before || ' ' || h.to_state = any(:moves) and not h.settled end) is not true
        order by h.payout_id, h.version""",
    "payout.wrong_ends": """
        select 'payout.payout ' || p.payout_id as name, w.what
        from payout p left join payout_history h on h.payout_id = p.payout_id and h.version = p.version and h.to_state = p.state and h.settled = p.settled
        left join payout_history n on n.payout_id = p.payout_id and n.version = p.version + 1
        cross join lateral (values
            (case when h.version is null or n.version is not null then coalesce(
                (select 'is ' || p.state || ' at version ' || p.version || ', but its history ends in ' || l.to_state || ' at ' || l.version
                 from payout_history l where l.payout_id = p.payout_id order by l.version desc limit 1), 'has no history') end),
            (case when p.net_amount + p.fee <> p.amount or p.fee < 0 or p.net_amount <= 0
                then 'what the bank gets and the fee do not sum to the amount' end)) w (what)
        where (h.version is null or n.version is not null or p.net_amount + p.fee <> p.amount or p.fee < 0 or p.net_amount <= 0) and w.what is not null
        order by p.payout_id""",
    "payout.missing": """
        select distinct 'payout.payout ' || h.payout_id as name, 'has history and no payout' as what
        from payout_history h where not exists (select from payout p where p.payout_id = h.payout_id) order by name""",
    "payout.in_flight": """
        select distinct seller_account, currency from payout
        where not settled and state in ('PAID', 'RETURNED', 'FAILED', 'REJECTED', 'CANCELLED') order by seller_account, currency""",
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
    "wallet.payout_holds": """
        select substr(hold_id, 9) as payout_id, seller_account, currency, amount, captured_amount, state
        from hold where purpose = 'PAYOUT' order by payout_id""",
    "wallet.payouts": """
        select cause, seller_account, currency, case kind when 'DEBIT' then -amount else amount end as amount from wallet_entry
        where (kind = 'DEBIT' and cause like 'PAYOUT/%') or (kind = 'CREDIT' and starts_with(cause, 'PAYOUT_RETURN/')) order by cause""",
    "ledger.payouts": f"""
        select (t.kind || '/' || t.cause_id) collate "C" as cause, {_LINES} as lines
        from tx t where t.kind in ('PAYOUT', 'PAYOUT_RETURN') or (t.kind = 'UNAPPLIED' and t.cause_id like 't-%') order by cause, t.sequence""",
    **_WRONG,
    **_LAST_VERSIONS,
    "payment.versions": f"""
        select 'paymentOrders/' || payment_order_id as aggregate_id, {_VERSIONS.format("version")} from order_history
        group by payment_order_id, block order by payment_order_id, block""",
    "payout.versions": f"""
        select 'payouts/' || payout_id as aggregate_id, {_VERSIONS.format("version")} from payout_history
        group by payout_id, block order by payout_id, block""",
    "wallet.versions": f"""
        select 'wallets/' || seller_account || '/' || currency as aggregate_id, {_VERSIONS.format("number")} from wallet_entry
        group by seller_account, currency, block order by aggregate_id, block""",
    **{f"{schema}.outbox": _UNPUBLISHED for schema in ("payment", "wallet", "payout")},
    "event.head": "select cursor from head",
    "event.count": "select count(*) as rows, coalesce(max(cursor), 0) as last from event",
    "event.gaps": """
        select 'event.event ' || cursor as name, 'follows ' || before || ', with a gap' as what
        from (select cursor, lag(cursor, 1, 0::bigint) over (order by cursor) as before from event) e where cursor <> before + 1 order by cursor""",
    "event.versions": f"""
        select aggregate_id, {_VERSIONS.format("aggregate_version")} from event where starts_with(aggregate_id, :prefix)
        group by aggregate_id, block order by aggregate_id, block""",
}


class Reader:
    """Reads each schema by a role that can only read it. `url`: a schema's database."""

    def __init__(self, url: Callable[[str], str]) -> None:
        self._url = url
        self._engines: dict[str, Engine] = {}

    @contextmanager
    def at_one_moment(self) -> Iterator[Callable[..., Iterator[Row[Any]]]]:
        """What opens queries, each on a connection of its own, from any thread: rows in the query's order, without holding them.

        All that lies in one database is read as it stood at one moment, whatever goes on meanwhile. Each further database has a moment of its own,
        that of events the last, so that whatever was relayed before another's moment is among them.
        """
        snapshots: dict[URL, str] = {}
        with ExitStack() as held:
            for schema in _SCHEMAS:
                engine = self._engine(schema)
                if _database(engine) not in snapshots:
                    first = held.enter_context(engine.connect())  # a snapshot lasts as long as its transaction
                    first.exec_driver_sql(_MAY_REST)
                    snapshots[_database(engine)] = first.execute(text("select pg_export_snapshot()")).scalar_one()

            def read(name: str, **parameters: Any) -> Iterator[Row[Any]]:
                engine = self._engine(name.partition(".")[0])
                with engine.connect() as connection:
                    connection.exec_driver_sql(f"set transaction snapshot '{snapshots[_database(engine)]}'")
                    connection.exec_driver_sql(f"{_MAY_REST}; {_PLANNED_FOR_ALL_ROWS}")
                    yield from _rows(connection, name, parameters)

            yield read

    def _engine(self, schema: str) -> Engine:
        if schema not in self._engines:
            self._engines[schema] = create_engine(self._url(schema), max_overflow=-1, isolation_level="REPEATABLE READ")
        return self._engines[schema]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.dispose()


def _database(engine: Engine) -> URL:
    return engine.url.set(username="-", password="-")  # noqa: S106 - whoever asks


def _rows(connection: Connection, name: str, parameters: dict[str, Any]) -> Iterator[Row[Any]]:
    options = {"stream_results": True, "yield_per": _ROWS_AT_ONCE}
    yield from connection.execution_options(**options).execute(statement(name, parameters), parameters)


def statement(name: str, parameters: dict[str, Any]) -> TextClause:
    """The query of that name, or the one that comes with the parameters, from which it is taken."""
    return text(parameters.pop("statement", QUERIES[name]))
