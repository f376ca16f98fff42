"""Wallets, their entries, holds, policies; seller ownership."""

from tallystick_storage.migrations import create
from tallystick_storage.migrations.rules import (
    changes_without_event,
    require_change,
    require_event,
    statement_rule,
)
from tallystick_storage.migrations.shared_tables import ALERTS, OUTBOX, SHARED_CHANGE_SELECTS

revision = "wallet_0001"
down_revision = None
branch_labels = ("wallet",)
depends_on = None

TABLES = """
create table wallet (
    seller_account text collate "C" not null,
    currency text collate "C" not null,
    pending numeric(38, 0) not null check (pending >= 0 and pending <> 'NaN'),
    available numeric(38, 0) not null check (available >= 0 and available <> 'NaN'),
    held numeric(38, 0) not null check (held >= 0 and held <> 'NaN'),
    owed numeric(38, 0) not null
        check (owed >= 0 and owed <> 'NaN' and (owed = 0 or available = 0)),
    balance numeric(38, 0) not null check (balance = pending + available + held - owed),
    version bigint not null check (version >= 0),  -- the number of its last entry
    frozen boolean not null,
    release_delay int not null check (release_delay between 0 and 31536000),  -- seconds
    policy_version int not null check (policy_version >= 0),
    update_time timestamptz not null,
    primary key (seller_account, currency)
) with (fillfactor = 45);  -- free space for HOT updates: new balances change no index
create index wallet_by_currency on wallet (currency, seller_account);

create table wallet_entry (
    seller_account text collate "C" not null,
    currency text collate "C" not null,
    number bigint not null check (number > 0),
    kind text not null
        check (kind in ('CREDIT', 'RELEASE', 'DEBIT', 'HOLD_PLACED', 'HOLD_CAPTURED',
        'HOLD_RELEASED', 'HOLD_EXPIRED')),
    source_id text collate "C" not null,
    caller text not null,
    fingerprint bytea not null check (length(fingerprint) = 32),
    amount bigint not null check (amount > 0 and amount <= 999999999999999999),
    pending_after numeric(38, 0) not null,
    available_after numeric(38, 0) not null,
    held_after numeric(38, 0) not null,
    owed_after numeric(38, 0) not null,
    traceparent text not null,
    create_time timestamptz not null,
    primary key (seller_account, currency, number),
    unique (kind, source_id)  -- each change is applied once, permanently
);

create table hold (
    hold_id text collate "C" primary key,
    seller_account text collate "C",
    currency text collate "C",
    amount bigint check (amount > 0),
    captured_amount bigint not null
        check (captured_amount between 0 and amount
        and (captured_amount > 0) = (state = 'CAPTURED')),
    purpose text
        check (purpose in ('PAYOUT', 'RESERVE', 'DISPUTE')
        and (purpose = 'PAYOUT') = starts_with(hold_id, 'payouts/')),
    -- TOMBSTONE: released before it was placed, so it is never placed
    state text not null check (state in ('OPEN', 'CAPTURED', 'RELEASED', 'EXPIRED', 'TOMBSTONE')),
    check (num_nulls(seller_account, currency, amount, purpose) = case when state = 'TOMBSTONE'
        then 4
        else 0 end),
    caller text not null,
    expire_time timestamptz check (expire_time is null or purpose <> 'PAYOUT'),
    create_time timestamptz not null,
    end_time timestamptz check ((end_time is null) = (state = 'OPEN')),
    foreign key (seller_account, currency) references wallet
);
create index hold_by_wallet on hold (seller_account, currency, create_time desc, hold_id desc);
create index hold_open_by_wallet on hold (seller_account, currency) where state = 'OPEN';
create index hold_by_expiry on hold (expire_time, hold_id) where state = 'OPEN'
    and expire_time is not null;

-- Pending credits, each until it is released by its source id or when its delay has passed.
create table pending_credit (
    source_id text collate "C" primary key,
    seller_account text collate "C" not null,
    currency text collate "C" not null,
    amount bigint not null check (amount > 0),
    release_time timestamptz not null,
    foreign key (seller_account, currency) references wallet
);
create index pending_credit_by_time on pending_credit (release_time, source_id);

create table wallet_policy (
    seller_account text collate "C" not null,
    currency text collate "C" not null,
    version int not null check (version > 0),
    frozen boolean not null,
    release_delay int not null,
    caller text not null,
    traceparent text not null,
    create_time timestamptz not null,
    primary key (seller_account, currency, version)
);

-- The owner of a seller: one row, so one owner, even with concurrent claims.
create table seller (
    seller_account text collate "C" primary key,
    owner text collate "C" not null check (owner <> ''),
    version int not null check (version > 0),
    update_time timestamptz not null
);

-- A seller's move to another owner: requested by one operator, decided by another.
create table seller_assignment (
    seller_assignment_id text collate "C" primary key,
    seller_account text collate "C" not null,
    owner text collate "C" not null check (owner <> ''),
    -- "": it had no owner
    previous_owner text collate "C" not null check (previous_owner <> owner),
    state text not null check (state in ('REQUESTED', 'APPROVED', 'REJECTED')),
    requested_by text not null check (requested_by <> ''),
    reason text not null check (reason <> ''),
    decided_by text not null
        check ((decided_by = '') = (state = 'REQUESTED')
        and (state <> 'APPROVED' or decided_by <> requested_by)),
    decision_reason text not null check ((decision_reason = '') = (state = 'REQUESTED')),
    -- the seller version that it created
    seller_version int check ((seller_version is not null) = (state = 'APPROVED')),
    create_time timestamptz not null,
    decide_time timestamptz check ((decide_time is null) = (state = 'REQUESTED'))
);
create unique index seller_assignment_open on seller_assignment (seller_account)
    where state = 'REQUESTED';
create index seller_assignment_by_seller
    on seller_assignment (seller_account, create_time desc, seller_assignment_id desc);
"""

RULES = (
    """
create function reject_transition() returns trigger language plpgsql as $$
begin
    raise exception '% cannot change so', tg_table_name using errcode = 'P0001';
end $$;
-- W3: a hold ends once.
create trigger ends_once before update on hold for each row
    when (old.state <> 'OPEN' or new.state in ('OPEN', 'TOMBSTONE')) execute function
        reject_transition();

-- P4: values that neither an entry nor a policy records do not change.
create trigger changes_by_versions after update on wallet for each row when (
    new.version < old.version
        or new.policy_version not in (old.policy_version, old.policy_version + 1)
    or (new.version = old.version
        and (new.pending, new.available, new.held, new.owed) is distinct
            from (old.pending, old.available, old.held, old.owed))
    or (new.policy_version = old.policy_version and (new.frozen, new.release_delay) is distinct
        from (old.frozen, old.release_delay)))
execute function reject_transition();

"""
    # P4: a wallet equals its last entry and its last policy.
    + statement_rule(
        "wallet_follows_entries",
        "wallet",
        (
            """
            select from changed w where (
                (w.version = 0 or exists (
                    select from wallet_entry e where e.seller_account = w.seller_account
                        and e.currency = w.currency and e.number = w.version
                        and (e.pending_after, e.available_after, e.held_after,
                            e.owed_after) = (w.pending, w.available, w.held, w.owed) offset 0))
                and (w.policy_version = 0 or exists (
                    select from wallet_policy p where p.seller_account = w.seller_account
                        and p.currency = w.currency and p.version = w.policy_version
                        and p.frozen = w.frozen and p.release_delay = w.release_delay offset 0))) is
                            not true""",
            "a wallet does not match its entries and policies",
        ),
        on=("update",),
    )
    + """
create function wallet_is_new() returns trigger language plpgsql as $$
begin
    raise exception 'a wallet is opened empty' using errcode = 'P0001';
end $$;
create trigger wallet_is_new before insert on wallet for each row
    when (new.version <> 0 or new.policy_version <> 0 or new.pending <> 0 or new.available <> 0
        or new.held <> 0 or new.owed <> 0)
    execute function wallet_is_new();

"""
    # A pending credit is created with its entry, deleted with its release, and never changed.
    + statement_rule(
        "pending_has_entry",
        "pending_credit",
        (
            """
            select from changed c where not exists (
                select from wallet_entry e where e.kind = case when tg_op = 'INSERT' then 'CREDIT'
                    else 'RELEASE' end and e.source_id = c.source_id
                    and e.seller_account = c.seller_account and e.currency = c.currency
                        and e.amount = c.amount offset 0)""",
            "a pending credit without its entry",
        ),
        on=("insert", "delete"),
    )
    + """
create trigger never_changed before update or truncate on pending_credit
    for each statement execute function reject_change();

"""
    # P4, E1: entries and policies are numbered without a gap, none is newer than its wallet, and
    # each has its event.
    + statement_rule(
        "entry_has_wallet",
        "wallet_entry",
        (
            """
            select from changed e where (
                exists (select from wallet w where w.seller_account = e.seller_account
                    and w.currency = e.currency and w.version >= e.number offset 0)
                and (e.number = 1 or exists (
                    select from wallet_entry p where p.seller_account = e.seller_account
                        and p.currency = e.currency and p.number = e.number - 1 offset 0))
                ) is not true""",
            "an entry does not follow its wallet",
        ),
        (
            changes_without_event("'wallets/' || seller_account || '/' || currency", "number"),
            "a change has no event",
        ),
    )
    + statement_rule(
        "policy_has_wallet",
        "wallet_policy",
        (
            """
            select from changed p where (
                exists (select from wallet w
                        where w.seller_account = p.seller_account and w.currency = p.currency
                            and w.policy_version >= p.version offset 0)
                and (p.version = 1 or exists (
                    select from wallet_policy b where b.seller_account = p.seller_account
                        and b.currency = p.currency and b.version = p.version - 1 offset 0))
                ) is not true""",
            "a policy does not follow its wallet",
        ),
        (
            changes_without_event("'walletPolicies/' || seller_account || '/' || currency"),
            "a change has no event",
        ),
    )
    # W3: the held amount is the sum of the open holds. Each entry of a hold adds or subtracts its
    # amount, and each hold has its entries.
    + statement_rule(
        "held_is_in_holds",
        "wallet_entry",
        (
            """
            select from changed e where e.held_after is distinct from
                coalesce((select p.held_after from wallet_entry p
                          where p.seller_account = e.seller_account and p.currency = e.currency
                              and p.number = e.number - 1), 0)
                + case when e.kind not like 'HOLD\\_%' then 0 else (
                    select case when e.kind = 'HOLD_PLACED' then h.amount else -h.amount end
                        from hold h
                    where h.hold_id = e.source_id and h.seller_account = e.seller_account
                        and h.currency = e.currency
                        and (e.kind = 'HOLD_PLACED' or e.kind = 'HOLD_' || h.state)) end""",
            "a wallet holds another sum than its open holds",
        ),
    )
    + statement_rule(
        "hold_is_held",
        "hold",
        (
            """
            select from changed h where h.state <> 'TOMBSTONE' and (
                select count(*) from wallet_entry e
                where e.kind in ('HOLD_PLACED', 'HOLD_' || h.state) and e.source_id = h.hold_id
                    and e.seller_account = h.seller_account
                    and e.currency = h.currency) <> case when h.state = 'OPEN' then 1 else 2 end""",
            "the open holds are another sum than their wallet holds",
        ),
        on=("insert", "update"),
    )
    + """
create trigger decided_once before update on seller_assignment for each row
    when (old.state <> 'REQUESTED' or new.state = 'REQUESTED')
execute function reject_transition();
create trigger version_increases before update on seller for each row
    when (new.version <> old.version + 1 or new.update_time < old.update_time)
execute function reject_transition();
create trigger never_deleted before delete or truncate on seller
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on seller_assignment
    for each statement execute function reject_change();

"""
    # A seller moves to another owner only by an approved assignment.
    + statement_rule(
        "seller_has_assignment",
        "seller",
        (
            """
            select from changed s where exists (
                select from seller_assignment a where a.seller_account = s.seller_account
                    and a.owner = s.owner and a.state = 'APPROVED'
                    and a.seller_version = s.version) is not true""",
            "a seller moved without an assignment",
        ),
        on=("update",),
    )
    + """
create trigger append_only before update or delete or truncate on wallet_entry
    for each statement execute function reject_change();
create trigger append_only before update or delete or truncate on wallet_policy
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on wallet
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on hold
    for each statement execute function reject_change();
"""
)

_OF_SELLER = "seller_account = split_part({id}, '/', 1) and currency = split_part({id}, '/', 2)"
EVENTS = (
    require_change(
        {
            "wallets": f"select from wallet_entry where {_OF_SELLER} and number = x.version",
            "walletPolicies": (
                f"select from wallet_policy where {_OF_SELLER} and version = x.version"
            ),
            "alerts": SHARED_CHANGE_SELECTS["alerts"],
            "sellers": "select from seller where seller_account = {id} and version = x.version",
            "sellerAssignments": """select from seller_assignment a
                where a.seller_assignment_id = {id} and x.version = case when a.state = 'REQUESTED'
                    then 1 else 2 end""",
        }
    )
    + require_event("seller", "a seller", "'sellers/' || seller_account")
    + require_event(
        "seller_assignment",
        "an assignment",
        "'sellerAssignments/' || seller_assignment_id",
        "case when state = 'REQUESTED' then 1 else 2 end",
    )
)

GRANTS = """
grant select, insert on wallet, wallet_entry, hold, wallet_policy, seller,
    seller_assignment to {service};
grant select, insert, delete on pending_credit to {service};
grant update (pending, available, held, owed, balance, version, frozen, release_delay,
    policy_version, update_time) on wallet to {service};
grant update (captured_amount, state, end_time) on hold to {service};
grant update (owner, version, update_time) on seller to {service};
grant update (state, decided_by, decision_reason, seller_version, decide_time)
    on seller_assignment to {service};
"""

UNSEALED = frozenset({"wallet"})  # recomputed from its entries and policies


def upgrade() -> None:
    create("wallet", TABLES, OUTBOX, RULES, ALERTS, EVENTS, GRANTS, unsealed=UNSEALED)
