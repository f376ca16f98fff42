"""The sums of the clearing report are kept with each change, in `expected_sum` and `break_sum`, so
that the report does not add up entries and breaks.
"""

from tallystick_storage.migrations import run

revision = "reconciliation_0003"
down_revision = "reconciliation_0002"
branch_labels = None
depends_on = None
minimum_process_revision = "reconciliation_0002"
"""Triggers keep the sums, so older processes keep them too."""

_HOUR = "date_bin('1 hour', effective_time, timestamptz 'epoch')"
_EXPLAINS = "(b.state in ('OPEN', 'AWAITING_APPROVAL') or b.resolution = 'ACCEPT')"
# of the break `b`: entries less lines
_PARTS = """
        select b.account, l.currency, -l.amount as amount
        from statement_line l where l.break_id = b.break_id
        union all
        select i.account, i.currency, i.amount from closed_item i where i.break_id = b.break_id"""

TABLES = f"""
-- Nothing is stored between the copies and the triggers. All that move entries lock ledger_position
-- first, and what changes breaks writes no other of these tables, so there is no deadlock.
lock table ledger_position in exclusive mode;
lock table break, open_item, statement_line, closed_item in share row exclusive mode;
-- The entries in open_item by the hour of their effective time. An hour without entries has no row.
create table expected_sum (
    account text collate "C" not null,
    currency text collate "C" not null,
    hour timestamptz not null check (hour = date_bin('1 hour', hour, timestamptz 'epoch')),
    entry_count bigint not null check (entry_count >= 0),
    amount numeric(38, 0) not null check (entry_count > 0 or amount = 0),
    primary key (account, currency, hour)
);
insert into expected_sum (account, currency, hour, entry_count, amount)
    select account, currency, {_HOUR}, count(*), sum(amount) from open_item group by 1, 2, 3;
-- What the breaks explain that are not resolved, or accepted: entries less lines, and how many
-- breaks have some. A sum may have several rows: a transaction changes one that no other has
-- locked, or adds one. So a comparison of minutes holds up nobody who decides on a break, and there
-- is no deadlock.
create table break_sum (
    account text collate "C" not null,
    currency text collate "C" not null,
    break_class text not null,
    number bigint not null generated always as identity,
    break_count bigint not null,
    amount numeric(38, 0) not null,
    check (break_count <> 0 or amount <> 0),
    primary key (account, currency, break_class, number)
);
insert into break_sum (account, currency, break_class, break_count, amount)
    select account, currency, break_class, count(distinct break_id), sum(amount) from (
        select b.break_id, b.break_class, b.account, l.currency, -l.amount as amount
        from break b join statement_line l on l.break_id = b.break_id where {_EXPLAINS}
        union all
        select b.break_id, b.break_class, i.account, i.currency, i.amount
        from break b join closed_item i on i.break_id = b.break_id where {_EXPLAINS}) p
    group by 1, 2, 3;
analyze expected_sum, break_sum;
"""

# A session plans these statements once. Lookups by key and hashing suit few rows and a million:
# scans and sorts are disabled for the reason that `statement_rule` gives.
_KEEPS_SUMS = """returns trigger language plpgsql security definer set search_path from current
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_sort = off as $$"""
_CHANGED_HOURS = f"""
        select account, currency, {_HOUR} as hour, count(*) as entry_count, sum(amount) as amount
        from changed group by 1, 2, 3"""
_EXPECTED = f"""
create function entries_are_expected() {_KEEPS_SUMS}
begin
    insert into expected_sum as s (account, currency, hour, entry_count, amount){_CHANGED_HOURS}
    on conflict (account, currency, hour) do update
        set entry_count = s.entry_count + excluded.entry_count, amount = s.amount + excluded.amount;
    return null;
end $$;
create trigger entries_are_expected after insert on open_item referencing new table as changed
    for each statement execute function entries_are_expected();
create function entries_are_not_expected() {_KEEPS_SUMS}
begin
    with closed as materialized ({_CHANGED_HOURS}),
    ended as (
        delete from expected_sum s using closed c
        where (s.account, s.currency, s.hour) = (c.account, c.currency, c.hour)
            and (s.entry_count, s.amount) = (c.entry_count, c.amount))
    update expected_sum s set entry_count = s.entry_count - c.entry_count,
        amount = s.amount - c.amount
    from closed c
    where (s.account, s.currency, s.hour) = (c.account, c.currency, c.hour)
        and (s.entry_count, s.amount) <> (c.entry_count, c.amount);
    return null;
end $$;
create trigger entries_are_not_expected after delete on open_item referencing old table as changed
    for each statement execute function entries_are_not_expected();
"""
_BREAKS = f"""
create function add_to_break_sum(an_account text, a_currency text, a_class text, a_count bigint,
    an_amount numeric) returns void language plpgsql set search_path from current as $$
declare
    own break_sum;
begin
    if (a_count, an_amount) = (0, 0) then
        return;
    end if;
    select * into own from break_sum s
    where (s.account, s.currency, s.break_class) = (an_account, a_currency, a_class)
    order by s.number limit 1 for update skip locked;
    if not found then
        insert into break_sum (account, currency, break_class, break_count, amount)
        values (an_account, a_currency, a_class, a_count, an_amount);
    elsif (own.break_count + a_count, own.amount + an_amount) = (0, 0) then
        delete from break_sum s where (s.account, s.currency, s.break_class, s.number)
            = (own.account, own.currency, own.break_class, own.number);
    else
        update break_sum s
        set break_count = own.break_count + a_count, amount = own.amount + an_amount
        where (s.account, s.currency, s.break_class, s.number)
            = (own.account, own.currency, own.break_class, own.number);
    end if;
end $$;
-- A break explains its lines and entries, or does so no longer, or with another class.
create function breaks_are_summed() {_KEEPS_SUMS}
begin
    perform add_to_break_sum(account, currency, break_class, sum(sign), sum(sign * amount))
    from (
        select b.break_id, b.break_class, b.sign, p.account, p.currency, sum(p.amount) as amount
        from (
            (select break_id, account, break_class, 1 as sign from changed b where {_EXPLAINS}
                except select break_id, account, break_class, 1 from before b where {_EXPLAINS})
            union all
            (select break_id, account, break_class, -1 from before b where {_EXPLAINS}
                except select break_id, account, break_class, -1 from changed b where {_EXPLAINS})
            ) b
        cross join lateral ({_PARTS} offset 0) p
        group by 1, 2, 3, 4, 5) x
    group by account, currency, break_class;
    return null;
end $$;
create trigger breaks_are_summed after update on break
    referencing new table as changed old table as before
    for each statement execute function breaks_are_summed();
"""


def _adds_parts(table: str, account: str, amount: str) -> str:
    """Adds the rows of a statement that go into breaks. Their breaks are new, or locked."""
    return f"""
create function {table}_is_summed() {_KEEPS_SUMS}
begin
    perform add_to_break_sum(b.part_account, b.currency, b.break_class,
        count(*) filter (where b.row_count = (select count(*) from ({_PARTS}) p
            where p.account = b.part_account and p.currency = b.currency)),
        sum(b.amount))
    from (
        select b.break_id, b.account, b.break_class, {account} as part_account, c.currency,
            {amount} as amount, count(*) as row_count
        from (select * from changed where break_id is not null) c
        cross join lateral (select * from break b where b.break_id = c.break_id offset 0) b
        where {_EXPLAINS} group by 1, 2, 3, 4, 5) b
    group by b.part_account, b.currency, b.break_class;
    return null;
end $$;
create trigger {table}_is_summed after insert on {table} referencing new table as changed
    for each statement execute function {table}_is_summed();
"""


def upgrade() -> None:
    run(
        "reconciliation",
        TABLES,
        _EXPECTED,
        _BREAKS,
        _adds_parts("statement_line", "b.account", "-sum(c.amount)"),
        _adds_parts("closed_item", "c.account", "sum(c.amount)"),
        "grant select on expected_sum, break_sum to {service};",
    )
