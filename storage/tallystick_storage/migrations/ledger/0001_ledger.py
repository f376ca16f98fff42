"""The ledger: head, accounts, transactions, entries."""

from tallystick_storage.migrations import create
from tallystick_storage.migrations.rules import require_change, statement_rule
from tallystick_storage.migrations.shared_tables import ALERTS, OUTBOX, SHARED_CHANGE_SELECTS

revision = "ledger_0001"
down_revision = None
branch_labels = ("ledger",)
depends_on = None

TABLES = """
create table head (
    book text collate "C" primary key check (book ~ '^[a-z][a-z0-9_]{0,15}$'),
    sequence bigint not null,
    hash bytea not null check (length(hash) = 32),
    post_time timestamptz not null
);

create table account (
    account_id bigint generated always as identity primary key,
    book text collate "C" not null,
    account text collate "C" not null,
    currency text collate "C" not null,
    balance numeric(38, 0) not null check (balance <> 'NaN'),
    entry_count bigint not null check (entry_count >= 0),
    create_time timestamptz not null,
    unique (book, account, currency)
) with (fillfactor = 45);
create index account_by_currency on account (book, currency, account);

create table tx (
    book text collate "C" not null,
    sequence bigint not null check (sequence > 0),
    kind text not null,
    source_id text collate "C" not null,
    caller text not null,
    fingerprint bytea not null check (length(fingerprint) = 32),
    entry_count int not null check (entry_count >= 2),
    description text not null,
    external_reference text collate "C" not null,  -- of a provider or bank; "": there is none
    buyer_account text collate "C" not null,  -- "": the money is no buyer's
    reverses bigint,
    effective_time timestamptz not null,
    post_time timestamptz not null,
    previous_hash bytea not null check (length(previous_hash) = 32),
    hash bytea not null check (length(hash) = 32),
    primary key (book, sequence),
    unique (source_id, kind, book),
    foreign key (book, reverses) references tx (book, sequence)
);
create index tx_by_time on tx (book, post_time, sequence);
create index tx_by_kind on tx (book, kind, sequence);
create index tx_by_reference on tx (external_reference, book, sequence)
    where external_reference <> '';
create index tx_by_buyer on tx (buyer_account, book, sequence) where buyer_account <> '';
create unique index tx_reversed_once on tx (book, reverses) where reverses is not null;

create table entry (
    book text collate "C" not null,
    sequence bigint not null,
    line_number smallint not null,
    account_id bigint not null,
    currency text not null,
    -- a credit is positive, a debit negative
    amount bigint not null check (amount <> 0 and abs(amount) <= 999999999999999999),
    balance_after numeric(38, 0) not null check (balance_after <> 'NaN'),
    number bigint not null check (number > 0),  -- position among the entries of its account
    primary key (book, sequence, line_number)
);
create index entry_by_account on entry (account_id, sequence, line_number);
"""

RULES = (
    """
-- Writers are serialized at the head; accounts are locked in the order of their ids. The role
-- itself has no UPDATE privilege.
create function lock_head(book_name text) returns table (sequence bigint, hash bytea,
    post_time timestamptz, now timestamptz)
language sql volatile security definer set search_path = ledger, pg_temp as $$
    select h.sequence, h.hash, h.post_time, greatest(h.post_time, clock()) from head h
        where h.book = book_name for update
$$;

create function lock_accounts(ids bigint[]) returns table (account_id bigint, balance numeric,
    entry_count bigint)
language sql volatile security definer set search_path = ledger, pg_temp as $$
    select a.account_id, a.balance, a.entry_count from account a where a.account_id = any (ids)
        order by a.account_id for update
$$;

"""
    # L1, L3: every transaction is complete when its statement ends, and nothing is added to an
    # earlier one.
    + statement_rule(
        "entries_are_whole",
        "entry",
        (
            """
            select from (select book, sequence, count(*) as entry_count from changed
                group by book, sequence) s where (
                select array[s.entry_count, count(*)] from entry e where e.book = s.book
                    and e.sequence = s.sequence
                ) is distinct
                    from (select array[t.entry_count, t.entry_count]::bigint[] from tx t
                        where t.book = s.book
                    and t.sequence = s.sequence)""",
            "entries without their transaction, or not as many as it has",
        ),
        (
            """
            select from (select distinct book, account_id, currency from changed) e
            where not exists (select from account a where a.account_id = e.account_id
                and a.book = e.book and a.currency = e.currency offset 0)""",
            "an entry is in another book or currency than its account",
        ),
        (
            "select from changed group by book, sequence, currency having sum(amount) <> 0",
            "the entries of a transaction do not sum to zero",
        ),
    )
    + """
-- L6, L7: transactions follow the head without a gap, and head and balances change with them.
create function head_advances() returns trigger language plpgsql security definer
set search_path = ledger, pg_temp set plan_cache_mode = force_generic_plan
    set enable_seqscan = off as $$
declare
    numbered boolean;
begin
    if exists (select from added t
        where not exists (select from entry e where e.book = t.book
        and e.sequence = t.sequence offset 0)) then
        raise exception 'a transaction without entries' using errcode = 'P0001';
    end if;
    if exists (
        select from (select t.*, lag(t.hash) over w as hash_before,
            lag(t.sequence) over w as sequence_before, lag(t.post_time) over w as time_before
                     from added t window w as (partition by t.book order by t.sequence)) t
        left join head h on h.book = t.book
        where h.book is null
           or t.sequence <> coalesce(t.sequence_before, h.sequence) + 1
           or t.previous_hash <> coalesce(t.hash_before, h.hash)
           or t.post_time < coalesce(t.time_before, h.post_time)
    ) then
        raise exception 'a transaction does not follow the one before it' using errcode = 'P0001';
    end if;
    update head h set sequence = l.sequence, hash = l.hash, post_time = l.post_time
    from (select distinct on (book) book, sequence, hash, post_time from added
        order by book, sequence desc) l where h.book = l.book;
    with sums as (
        select e.account_id, sum(e.amount) as amount, count(*) as entries, min(e.number) as first,
            max(e.number) as last
        from added t cross join lateral (select account_id, amount, number from entry e
            where e.book = t.book and e.sequence = t.sequence offset 0) e
        group by e.account_id order by e.account_id),
    locked as materialized (
        select s.* from sums s cross
            join lateral (select from account a where a.account_id = s.account_id for update) a),
    changed as (
        update account a set balance = a.balance + l.amount, entry_count = a.entry_count + l.entries
            from locked l where a.account_id = l.account_id
        returning l.first = a.entry_count - l.entries + 1 and l.last = a.entry_count as numbered)
    select bool_and(m.numbered) into numbered from changed m;
    if not numbered then
        raise exception 'entries are not numbered as their account counts them'
            using errcode = 'P0001';
    end if;
    return null;
end $$;
create trigger head_advances after insert on tx referencing new table as added
    for each statement execute function head_advances();

create function account_is_new() returns trigger language plpgsql as $$
begin
    raise exception 'an account is opened empty' using errcode = 'P0001';
end $$;
create trigger account_is_new before insert on account for each row
    when (new.balance <> 0 or new.entry_count <> 0) execute function account_is_new();

create trigger append_only before update or delete or truncate on tx
    for each statement execute function reject_change();
create trigger append_only before update or delete or truncate on entry
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on account
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on head
    for each statement execute function reject_change();

-- The last transaction that the relay has passed to EventService. The ledger is its own outbox; the
-- outbox table is for alerts.
create table relayed (book text collate "C" primary key references head,
    sequence bigint not null check (sequence >= 0));

-- Only the owner opens a book: its chain begins, and nothing else changes.
create function open_book(name text) returns void language sql
set search_path = ledger, pg_temp as $$
    insert into head values (name, 0, decode(repeat('00', 32), 'hex'), clock());
    insert into relayed values (name, 0);
$$;
revoke execute on function open_book from public;
select open_book('main');
"""
)

GRANTS = """
grant select on head to {service};
grant select, insert on account, tx, entry to {service};
grant select, update (sequence) on relayed to {service};
"""

EVENTS = require_change({"alerts": SHARED_CHANGE_SELECTS["alerts"]})

# recomputed from the hash chain
UNSEALED = frozenset({"head", "account", "tx", "entry", "relayed"})


def upgrade() -> None:
    create("ledger", TABLES, OUTBOX, RULES, ALERTS, EVENTS, GRANTS, unsealed=UNSEALED)
