"""What was read of an entry is stored once, in `ledger_item`, with its keys. `open_item` and
`closed_item` keep what is summed, so that an entry moves between them without its texts and their
indexes.
"""

from tallystick_storage.migrations import run

revision = "reconciliation_0002"
down_revision = "reconciliation_0001"
branch_labels = None
depends_on = None

TABLES = """
-- An old process that still runs could otherwise store or close entries between the copies. All
-- that do so lock ledger_position first.
lock table ledger_position, open_item, closed_item in access exclusive mode;
-- The ledger's entries on clearing accounts, as they were read.
create table ledger_item (like open_item including constraints);
insert into ledger_item select * from open_item;
insert into ledger_item
    select book, sequence, entry_number, account, currency, amount, kind, source_id,
        external_reference, effective_time, line_type
    from closed_item;
alter table ledger_item add primary key (book, sequence, entry_number);
create index ledger_item_by_reference on ledger_item (external_reference, line_type)
    where external_reference <> '';
create index ledger_item_by_source on ledger_item (source_id, line_type);
create trigger append_only before update or delete or truncate on ledger_item
    for each statement execute function reject_change();

-- The entries that no line has yet. The index by source goes with its column.
alter table open_item drop column kind, drop column source_id;
drop index open_item_by_reference;
-- The entries that lines or breaks have, or that reconciliation has posted itself. Two indexes go
-- with their columns.
alter table closed_item drop column kind, drop column source_id, drop column external_reference,
    drop column effective_time, drop column line_type;
-- The entries of a file are next to each other, and read all at once.
drop index closed_item_by_match;
create index closed_item_by_file on closed_item using brin (file_number)
    with (autosummarize = on);

grant select, insert on ledger_item to {service};
revoke update on open_item from {service};
analyze ledger_item;
"""


def upgrade() -> None:
    run("reconciliation", TABLES)
