"""Statement files and their lines, the ledger's entries on clearing accounts, breaks and what is
posted for them.
"""

from tallystick_core.reconciliation.breaks import (
    KINDS_ENDED_BY_BOOKING,
    BreakAction,
    BreakClass,
    BreakState,
    Resolution,
)
from tallystick_core.reconciliation.statement import LineType
from tallystick_storage.migrations import create
from tallystick_storage.migrations.rules import require_change, require_event, statement_rule
from tallystick_storage.migrations.shared_tables import ALERTS, OUTBOX, SHARED_CHANGE_SELECTS

revision = "reconciliation_0001"
down_revision = None
branch_labels = ("reconciliation",)
depends_on = None


def _values(enum: type[BreakClass | BreakState | Resolution | BreakAction | LineType]) -> str:
    return ", ".join(f"'{value}'" for value in enum)


# a later migration adds others
_KINDS = """'CHARGE_NOT_BOOKED', 'CHARGE_UNKNOWN', 'PAYOUT_NOT_BOOKED', 'PAYOUT_UNKNOWN',
    'ROUNDING', 'AMOUNT_DIFFERS', 'CURRENCY_DIFFERS', 'SIGN_DIFFERS', 'DATE_DIFFERS', 'FEE_DIFFERS',
    'DUPLICATE_LINE', 'LINE_CORRECTED', 'REFUND_NOT_BOOKED', 'DISPUTE_NOT_BOOKED', 'RESERVE',
    'TRANSFER', 'CONVERSION', 'PROVIDER_ADJUSTMENT', 'SETTLEMENT_FAILED', 'BANK_ENTRY_UNKNOWN',
    'LINE_UNKNOWN', 'MISSING_IN_FILE', 'BALANCE_GAP', 'BALANCE_DIFFERS', 'LEDGER_UNBALANCED',
    'WALLET_DIFFERS'"""
_KINDS_LOOKED_UP = ", ".join(f"'{kind}'" for kind in sorted(KINDS_ENDED_BY_BOOKING))
_LINE_COLUMNS = f"""
    number bigint not null check (number > 0),  -- its position among the lines of the file
    statement_number int not null check (statement_number > 0),
    line_number bigint not null,  -- where it begins in the file
    line_type text not null check (line_type in ({_values(LineType)})),
    code text not null,
    amount bigint not null,  -- in minor units, by which the balance changes: after the fee
    currency text collate "C" not null,
    fee bigint not null,
    booking_date date,
    value_date date,
    reference text collate "C" not null,
    charge_reference text collate "C" not null,
    client_reference text collate "C" not null,
    settlement_reference text collate "C" not null,
    original_amount bigint,
    original_currency text not null check ((original_currency = '') = (original_amount is null)),
    text text not null,
    -- what makes it the same line in another file of the account; lines of a file that are equal in
    -- it are counted by `occurrence`
    identity uuid not null,
    occurrence int not null check (occurrence > 0)
"""
_ITEM_COLUMNS = f"""
    book text collate "C" not null,
    sequence bigint not null check (sequence > 0),
    entry_number int not null check (entry_number > 0),
    account text collate "C" not null,
    currency text collate "C" not null,
    -- debits less credits, in minor units: what a statement has
    amount bigint not null check (amount <> 0),
    kind text not null,
    source_id text collate "C" not null,
    external_reference text collate "C" not null,
    effective_time timestamptz not null,
    -- of the lines that can match it
    line_type text not null check (line_type in ({_values(LineType)})),
    primary key (book, sequence, entry_number)
"""

TABLES = f"""
-- A file with statements of one account.
create table statement_file (
    statement_file_id text collate "C" primary key,
    file_number bigint not null generated always as identity unique,
    file_name text not null check (file_name <> ''),
    content_sha256 text not null check (length(content_sha256) = 64),
    format text not null check (format <> ''),
    account text collate "C" not null check (account <> ''),
    difference_reason text not null,
    caller text not null check (caller <> ''),
    state text not null check (state in ('LOADING', 'RECONCILED')),
    item_count bigint not null check (item_count >= 0),
    line_count bigint not null check (line_count between 0 and item_count),
    statement_count int not null check (statement_count >= 0),
    matched_count bigint not null check (matched_count >= 0),
    repeated_count bigint not null check (repeated_count >= 0),
    create_time timestamptz not null,
    reconcile_time timestamptz check ((reconcile_time is not null) = (state = 'RECONCILED')),
    check (matched_count + repeated_count <= line_count)
);
-- R2: the same name has the same content. Files that are loading may share a name: a preview, and a
-- file that is corrected.
create unique index statement_file_by_name on statement_file (account, file_name)
    where state = 'RECONCILED';
create index statement_file_by_time on statement_file (create_time desc, statement_file_id desc);
create index statement_file_by_account
    on statement_file (account, create_time desc, statement_file_id desc);
create index statement_file_loading on statement_file (create_time) where state = 'LOADING';

-- One statement of a file. Its last row is open until its end has come.
create table statement (
    file_number bigint not null references statement_file (file_number),
    statement_number int not null check (statement_number > 0),
    line_number bigint not null,
    masked_account text not null,
    currency text collate "C" not null,
    statement_id text not null,
    opening_balance numeric(38, 0),  -- null: the file has none
    opening_date date,
    line_count bigint not null check (line_count >= 0),  -- so far
    total numeric(38, 0) not null,  -- of their amounts
    is_ended boolean not null,
    closing_balance numeric(38, 0),
    closing_date date,
    -- of the account, with the lines of this statement; null: it has no closing balance
    statement_balance numeric(38, 0),
    primary key (file_number, statement_number)
);

-- The lines of files that are loading. Unlogged: after a crash the file is sent again.
create unlogged table staged_line (
    file_number bigint not null,
{_LINE_COLUMNS},
    primary key (file_number, number)
);

-- The chunks in which the items of files that are loading were sent, so that a repeat is compared
-- with the first. Unlogged, as the lines are.
create unlogged table staged_chunk (
    file_number bigint not null,
    first_item bigint not null check (first_item >= 0),
    item_count int not null check (item_count > 0),
    sha256 bytea not null check (length(sha256) = 32),
    primary key (file_number, first_item)
);

-- The lines of reconciled files.
create table statement_line (
    file_number bigint not null,
{_LINE_COLUMNS},
    outcome text not null check (outcome in ('MATCHED', 'REPEATED', 'BREAK')),
    -- what has matched it: a rule, or the action of a person
    match_rule text not null check ((match_rule <> '') = (outcome = 'MATCHED')),
    -- the first line of those that match together
    match_number bigint check ((match_number is not null) = (outcome = 'MATCHED')),
    break_id text collate "C" check ((break_id is not null) = (outcome = 'BREAK')),
    first_file_number bigint check ((first_file_number is not null) = (outcome = 'REPEATED')),
    primary key (file_number, number)
);
-- R2: a line of an account counts once, however many files have it. Reference and type are a part
-- of the identity. They come first to find lines by them, and because references grow: a million
-- identities in random order would cost twice as much.
create unique index statement_line_once on statement_line
    (reference, line_type, identity, occurrence) where outcome <> 'REPEATED';
create index statement_line_by_break on statement_line (break_id) where break_id is not null;

-- How far the ledger was read.
create table ledger_position (
    book text collate "C" primary key,
    sequence bigint not null check (sequence >= 0)
);

-- The ledger's entries on clearing accounts that no line has yet, and those that lines or breaks
-- have.
create table open_item (
{_ITEM_COLUMNS}
) with (autovacuum_vacuum_scale_factor = 0.05);
create index open_item_by_account on open_item (account, currency, effective_time);
create index open_item_by_reference on open_item (external_reference, line_type)
    where external_reference <> '';
create index open_item_by_source on open_item (source_id, line_type);
-- the entries that the lines of banks can match
create index open_item_by_amount on open_item (amount, currency)
    where account like 'banks/%' or account like 'payouts/%';
create table closed_item (
{_ITEM_COLUMNS},
    file_number bigint,
    match_number bigint,
    break_id text collate "C",
    -- posted by reconciliation itself, so it has a line already
    is_own boolean not null,
    check (num_nonnulls(match_number, break_id) = case when is_own then 0 else 1 end),
    check ((match_number is null) or (file_number is not null))
);
create index closed_item_by_break on closed_item (break_id) where break_id is not null;
create index closed_item_by_match on closed_item (file_number, match_number)
    where match_number is not null;
create index closed_item_by_reference on closed_item (external_reference, line_type)
    where external_reference <> '';
create index closed_item_by_source on closed_item (source_id, line_type);

-- The balance of each account in each currency, by entries and by lines, so that a report need not
-- add them up.
create table clearing_balance (
    account text collate "C" not null,
    currency text collate "C" not null,
    ledger_balance numeric(38, 0) not null,
    statement_balance numeric(38, 0) not null,
    primary key (account, currency)
);

-- The rules that replace those that are built in, which are version 1.
create table break_rule (
    kind text not null check (kind in ({_KINDS})),
    version int not null check (version > 1),
    break_class text not null check (break_class in ({_values(BreakClass)})),
    rule_limit int not null check (rule_limit >= 0),
    caller text not null check (caller <> ''),
    reason text not null check (reason <> ''),
    create_time timestamptz not null,
    primary key (kind, version)
);

create table break (
    break_id text collate "C" primary key,
    kind text not null check (kind in ({_KINDS})),
    rule_version int not null check (rule_version > 0),
    break_class text not null check (break_class in ({_values(BreakClass)})),
    account text collate "C" not null,
    currency text collate "C" not null,
    difference numeric(38, 0) not null,
    detail text not null,
    file_number bigint,
    statement_file_id text collate "C" not null
        check ((statement_file_id <> '') = (file_number is not null)),
    state text not null check (state in ({_values(BreakState)})),
    assignee text not null,
    resolution text check (resolution in ({_values(Resolution)})
        and (resolution is not null) = (state <> 'OPEN')),
    -- who proposed what waits for a second person
    proposed_by text not null
        check ((proposed_by <> '') = (state in ('AWAITING_APPROVAL', 'AWAITING_REOPENING'))),
    version bigint not null check (version > 0),
    create_time timestamptz not null,
    update_time timestamptz not null check (update_time >= create_time)
);
create index break_by_time on break (create_time desc, break_id desc);
create index break_by_state on break (state, create_time desc, break_id desc);
create index break_open on break (break_id) where state = 'OPEN';
create index break_to_look_up on break (create_time, break_id)
    where state = 'OPEN' and kind in ({_KINDS_LOOKED_UP});
create index break_at_bank on break (difference, currency)
    where kind = 'BANK_ENTRY_UNKNOWN' and state <> 'RESOLVED';
create index break_by_class on break (state, break_class, create_time desc, break_id desc);
create index break_by_kind on break (kind, create_time desc, break_id desc);
create index break_by_account on break (account, create_time desc, break_id desc);
create index break_by_assignee on break (assignee, create_time desc, break_id desc)
    where assignee <> '';
create index break_by_file on break (file_number, create_time desc, break_id desc)
    where file_number is not null;

create table break_change (
    break_id text collate "C" not null references break,
    version bigint not null check (version > 0),
    action text not null check (action in ({_values(BreakAction)})),
    caller text not null check (caller <> ''),
    reason text not null,
    resolution text,
    assignee text not null,
    traceparent text not null,
    create_time timestamptz not null,
    primary key (break_id, version)
);

-- What reconciliation posts to the ledger. R3: nothing is edited, and each posting has its reason.
create table ledger_posting (
    kind text not null check (kind in ('PROVIDER_FEE', 'SETTLEMENT', 'BANK_STATEMENT_LINE',
        'ADJUSTMENT', 'WRITE_OFF')),
    source_id text collate "C" not null,
    account text collate "C" not null,  -- of the statement
    currency text collate "C" not null,
    amount bigint not null,  -- by which the account's balance changes
    entries jsonb not null,  -- account and amount of each, a credit above zero
    external_reference text not null,
    effective_time timestamptz not null,
    reason text not null check (reason <> ''),
    caller text not null check (caller <> ''),
    file_number bigint,
    break_id text collate "C" references break,
    is_posted boolean not null,
    transaction_id text not null check ((transaction_id <> '') = is_posted),
    create_time timestamptz not null,
    primary key (kind, source_id)
);
create index ledger_posting_due on ledger_posting (create_time, kind, source_id)
    where not is_posted;
create index ledger_posting_by_break on ledger_posting (break_id) where break_id is not null;
create index ledger_posting_by_file on ledger_posting (file_number) where file_number is not null;
"""

RULES = (
    """
create function reject_transition() returns trigger language plpgsql as $$
begin
    raise exception '% cannot change so', tg_table_name using errcode = 'P0001';
end $$;
create trigger version_increases before update on break for each row
    when (new.version <> old.version + 1 or new.update_time < old.update_time
        or (new.kind, new.account, new.currency, new.difference, new.create_time)
            is distinct from (old.kind, old.account, old.currency, old.difference,
                old.create_time))
execute function reject_transition();
create trigger reconciled_once before update or delete on statement_file for each row
    when (old.state = 'RECONCILED') execute function reject_transition();
create trigger position_grows before update on ledger_position for each row
    when (new.sequence < old.sequence) execute function reject_transition();
create trigger posted_once before update on ledger_posting for each row
    when (old.is_posted) execute function reject_transition();
create trigger append_only before update or delete or truncate on break_change
    for each statement execute function reject_change();
create trigger append_only before update or delete or truncate on break_rule
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on break
    for each statement execute function reject_change();
create trigger append_only before update or delete or truncate on statement_line
    for each statement execute function reject_change();
create trigger append_only before update or delete or truncate on closed_item
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on ledger_posting
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on ledger_position
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on clearing_balance
    for each statement execute function reject_change();
"""
    # R2: the statements of a reconciled file stay as they are.
    + statement_rule(
        "statement_is_loading",
        "statement",
        (
            """
            select from changed s where exists (
                select from statement_file f where f.file_number = s.file_number
                    and f.state = 'RECONCILED' offset 0)""",
            "a statement of a reconciled file changed",
        ),
        on=("insert", "update", "delete"),
    )
    # A break equals its last change, and its changes have no gap.
    + statement_rule(
        "break_follows_changes",
        "break",
        (
            """
            select from changed b where not exists (
                select from break_change c where c.break_id = b.break_id and c.version = b.version
                    and c.assignee = b.assignee and c.create_time = b.update_time offset 0)""",
            "a break does not match its changes",
        ),
        on=("insert", "update"),
    )
    + statement_rule(
        "change_has_break",
        "break_change",
        (
            """
            select from changed c where not exists (
                select from break b where b.break_id = c.break_id
                    and b.version in (c.version, c.version - 1) offset 0)
                or c.version > 1 and not exists (
                select from break_change p where p.break_id = c.break_id
                    and p.version = c.version - 1 offset 0)""",
            "a change does not follow its break",
        ),
    )
)

EVENTS = require_change(
    {
        "breaks": "select from break where break_id = {id} and version = x.version",
        "alerts": SHARED_CHANGE_SELECTS["alerts"],
    }
) + require_event("break", "a break", "'breaks/' || break_id")

GRANTS = """
grant select, insert, update, delete on staged_line, open_item to {service};
grant select, insert, delete on statement_file, statement, staged_chunk to {service};
grant update (state, item_count, line_count, statement_count, matched_count, repeated_count,
    reconcile_time) on statement_file to {service};
grant update (line_count, total, is_ended, closing_balance, closing_date, statement_balance)
    on statement to {service};
grant select, insert on statement_line, closed_item to {service};
grant select, insert, update (sequence) on ledger_position to {service};
grant select, insert, update (ledger_balance, statement_balance) on clearing_balance to {service};
grant select, insert on break_rule, break_change to {service};
grant select, insert, update (state, break_class, assignee, resolution, proposed_by, version,
    update_time) on break to {service};
grant select, insert, update (is_posted, transaction_id) on ledger_posting to {service};
"""

UNSEALED = frozenset(
    {"statement_line", "open_item", "closed_item", "clearing_balance", "ledger_position"}
)  # recomputed from the statements and the ledger


def upgrade() -> None:
    create("reconciliation", TABLES, OUTBOX, RULES, ALERTS, EVENTS, GRANTS, unsealed=UNSEALED)
