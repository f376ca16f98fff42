"""Destinations, payouts, history, transfers, schedules, batches."""

from tallystick_core.operations.kind import KindName
from tallystick_storage.migrations import create
from tallystick_storage.migrations.rules import (
    changes_without_event,
    require_change,
    require_event,
    statement_rule,
)
from tallystick_storage.migrations.shared_tables import (
    ALERTS,
    OUTBOX,
    SHARED_CHANGE_SELECTS,
    WEBHOOK_EVENTS,
    conflicting_reports,
    dead_letters,
    operations,
)

revision = "payout_0001"
down_revision = None
branch_labels = ("payout",)
depends_on = None

_KINDS = (KindName.PAYOUT, KindName.DESTINATION_VERIFICATION, KindName.WEBHOOK_EVENT)

TABLES = """
-- The first lease tokens of reopened payouts. They exceed all earlier tokens, because no operation
-- is claimed 2^32 times. Former holders are therefore fenced.
create sequence reopen_lease_token increment by 4294967296 start with 4294967296;

create table payout_destination (
    payout_destination_id text collate "C" primary key,
    caller text collate "C" not null,
    owner text collate "C" not null check (owner <> ''),  -- the owner whose callers see it
    fingerprint bytea not null check (length(fingerprint) = 32),
    seller_account text collate "C" not null,
    currency text collate "C" not null,
    bank_account_token text not null,  -- issued by the provider; sent only to the provider
    description text not null,
    provider text not null,
    traceparent text not null,
    state text not null
        check (state in ('PENDING_VERIFICATION', 'VERIFIED', 'UNUSABLE', 'DISABLED')),
    usable_time timestamptz not null check (usable_time >= create_time),
    -- it was verified at some time
    verified_time timestamptz check (verified_time is not null or state <> 'VERIFIED'),
    decline_code text not null,
    awaits_approval boolean not null,  -- by a second person; required before it is paid to
    approved_by text not null
        check (approved_by = '' or not awaits_approval and approved_by <> caller),
    approve_reason text not null check ((approve_reason <> '') = (approved_by <> '')),
    disabled_by text not null check ((disabled_by <> '') = (state = 'DISABLED')),
    disable_reason text not null check ((disable_reason <> '') = (state = 'DISABLED')),
    version int not null check (version > 0),
    create_time timestamptz not null,
    update_time timestamptz not null check (update_time >= create_time),
    unique (payout_destination_id, owner, seller_account, currency)  -- for the payouts to it
);
create index payout_destination_by_seller
    on payout_destination (seller_account, currency, owner, create_time desc,
    payout_destination_id desc);
create index payout_destination_by_time
    on payout_destination (create_time desc, payout_destination_id desc);
create index payout_destination_by_state
    on payout_destination (state, create_time desc, payout_destination_id desc);
create index payout_destination_by_owner
    on payout_destination (owner, create_time desc, payout_destination_id desc);

create table payout (
    payout_id text collate "C" primary key,
    caller text collate "C" not null,
    -- the owner whose callers see it: its seller's owner when it was accepted
    owner text collate "C" not null check (owner <> ''),
    fingerprint bytea not null check (length(fingerprint) = 32),
    requested_amount bigint,  -- null: as much as can be paid
    requested_destination text not null,  -- "": the current one
    seller_account text collate "C" not null,
    amount bigint not null check (amount between 1 and 999999999999999999),
    fee bigint not null check (fee >= 0),
    net_amount bigint not null check (net_amount > 0 and net_amount + fee = amount),
    reserve bigint not null check (reserve >= 0),
    currency text not null,
    payout_destination_id text collate "C" not null,
    -- money goes to a bank account of its seller and of the seller's owner
    foreign key (payout_destination_id, owner, seller_account, currency)
        references payout_destination (payout_destination_id, owner, seller_account, currency),
    payout_batch_id text collate "C" not null,
    provider text not null,
    traceparent text not null,
    state text not null
        check (state in ('CREATED', 'AWAITING_APPROVAL', 'READY', 'SUBMITTING', 'SUBMITTED',
        'IN_TRANSIT', 'PAID', 'FAILED', 'REJECTED',
        'CANCELLED', 'RETURNED')),
    -- its end is in wallet and ledger
    booked boolean not null
        check (not booked or state in ('PAID', 'FAILED', 'REJECTED', 'CANCELLED', 'RETURNED')),
    failure_reason text not null
        check ((failure_reason = '') = (state <> 'FAILED') and failure_reason in (
        '', 'INSUFFICIENT_FUNDS', 'WALLET_FROZEN', 'DESTINATION_REJECTED', 'PROVIDER_DECLINED',
            'PROVIDER_REJECTED', 'PROVIDER_MISMATCH',
        'PROVIDER_UNREACHABLE', 'CLOSED_BY_OPERATOR')),
    decline_code text not null,
    provider_reference text not null
        check (provider_reference <> '' or state not in ('PAID', 'RETURNED')),
    attempt_count int not null
        check (attempt_count in (0, 1) and (attempt_count = 1 or state not in (
        'SUBMITTING', 'SUBMITTED', 'IN_TRANSIT', 'PAID', 'RETURNED'))),
    paid_amount bigint not null check (paid_amount >= 0),
    returned_amount bigint not null check (returned_amount >= 0),
    version int not null check (version > 0),
    create_time timestamptz not null,
    update_time timestamptz not null check (update_time >= create_time)
-- free space for HOT updates: transitions until it is booked change no index
) with (fillfactor = 45);
create index payout_by_time on payout (create_time desc, payout_id desc);
create index payout_by_owner on payout (owner, create_time desc, payout_id desc);
create index payout_by_seller on payout (seller_account, create_time desc, payout_id desc);
create index payout_by_batch on payout (payout_batch_id, create_time desc, payout_id desc)
    where payout_batch_id <> '';

-- The payouts in rare states or in long-lasting ones. An index on the payout itself would change
-- with each transition. Maintained by a trigger.
create table payout_in_state (
    payout_id text collate "C" primary key,
    owner text collate "C" not null,
    state text not null,
    create_time timestamptz not null
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
create index payout_in_state_by_time on payout_in_state (state, create_time desc, payout_id desc);
create index payout_in_state_by_owner
    on payout_in_state (owner, state, create_time desc, payout_id desc);

-- Columns to find the payouts in progress of a batch, or to a destination.
alter table operation add payout_batch_id text collate "C" not null default '',
    add payout_destination_id text collate "C" not null default '';
create index operation_by_batch on operation (payout_batch_id) where payout_batch_id <> '';
create index operation_by_destination
    on operation (payout_destination_id, kind, operation_id)
    where payout_destination_id <> '';

-- Each transition, and its effect on the flags.
create table payout_history (
    payout_id text collate "C" not null,
    version int not null check (version > 0),
    from_state text,
    to_state text not null,
    transition_reason text not null,
    booked boolean not null,
    actor text not null,  -- who decided it; "": the platform
    reason text not null check (reason = '' or actor <> ''),
    create_time timestamptz not null,
    primary key (payout_id, version)
);

-- Money that a provider reports as paid, and what was returned of it. Always accepted as true, once
-- for each reference.
create table transfer (
    provider text not null,
    provider_reference text collate "C" not null check (provider_reference <> ''),
    payout_id text collate "C" not null references payout,
    match text not null
        check (match in ('EXACT', 'AFTER_FAILURE', 'AMOUNT_MISMATCH', 'DUPLICATE',
        'CURRENCY_MISMATCH')),
    -- O2: the source id of its posting; the payout id, once, for the requested transfer
    source_id text collate "C" not null unique,
    check ((source_id = payout_id) = (match in ('EXACT', 'AFTER_FAILURE'))),
    amount bigint not null check (amount > 0),
    currency text not null,
    returned_amount bigint check (returned_amount > 0),
    returned_currency text not null
        check ((returned_currency <> '') = (returned_amount is not null)),
    create_time timestamptz not null,
    return_time timestamptz check ((return_time is not null) = (returned_amount is not null)),
    -- the operator who acknowledged it as it is now; "": nobody yet
    acknowledged_by text not null default '',
    acknowledge_reason text not null default ''
        check ((acknowledge_reason <> '') = (acknowledged_by <> '')),
    acknowledge_time timestamptz check ((acknowledge_time is not null) = (acknowledged_by <> '')),
    check (acknowledged_by = '' or match <> 'EXACT' or coalesce(returned_amount > amount, false)
        or returned_currency not in ('', currency)),
    primary key (provider, provider_reference)
);
create index transfer_by_payout on transfer (payout_id, create_time);
create index transfer_unmatched on transfer (payout_id)
    where (match <> 'EXACT' or returned_amount > amount or returned_currency not in ('', currency))
        and acknowledged_by = '';

-- Completed payouts about which the provider may still report a return or a late payment.
create table completed_payout_poll (
    payout_id text collate "C" primary key references payout,
    next_poll_time timestamptz not null,
    poll_count int not null check (poll_count >= 0)
) with (fillfactor = 70);
create index completed_payout_poll_by_time on completed_payout_poll (next_poll_time, payout_id);

-- When and on what terms sellers are paid automatically; "" is every seller without an own
-- schedule. The last version applies.
create table payout_schedule (
    seller_account text collate "C" not null,
    currency text collate "C" not null,
    interval text not null check (interval in ('DAILY', 'WEEKDAYS', 'WEEKLY', 'MONTHLY', 'MANUAL')),
    weekday text not null check ((weekday <> '') = (interval = 'WEEKLY')),
    day_of_month int not null
        check (day_of_month between 0 and 31 and (day_of_month > 0) = (interval = 'MONTHLY')),
    cut_off text not null check ((cut_off <> '') = (interval <> 'MANUAL')),
    time_zone text not null check ((time_zone <> '') = (interval <> 'MANUAL')),
    minimum_amount bigint not null check (minimum_amount >= 0),
    fee bigint not null check (fee >= 0),
    reserve bigint not null check (reserve >= 0),
    -- false: the terms of the default apply
    has_own_terms boolean not null
        check (has_own_terms
        or (seller_account <> '' and minimum_amount = 0 and fee = 0 and reserve = 0)),
    -- the owner whose callers may stream its events; "": the platform
    owner text collate "C" not null,
    next_time timestamptz check ((next_time is null) = (interval = 'MANUAL')),
    -- when it is processed: at next_time, later after a failure
    next_run_time timestamptz check ((next_run_time is null) = (next_time is null)),
    -- how often its cut-off could not be run
    failure_count int not null default 0 check (failure_count >= 0),
    caller text not null,
    traceparent text not null,
    version int not null check (version > 0),
    update_time timestamptz not null,
    primary key (seller_account, currency)
);
create index payout_schedule_by_time on payout_schedule (next_time, seller_account, currency)
    where next_time is not null;
create index payout_schedule_due_of_all on payout_schedule (next_run_time, seller_account, currency)
    where seller_account = '' and next_run_time is not null;
create index payout_schedule_due_of_sellers
    on payout_schedule (next_run_time, seller_account, currency)
    where seller_account <> '' and next_run_time is not null;

create table payout_batch (
    payout_batch_id text collate "C" primary key,
    caller text collate "C" not null,
    owner text collate "C" not null,  -- the owner whose callers see it; "": the platform
    fingerprint bytea not null check (length(fingerprint) = 32),
    traceparent text not null,
    is_run boolean not null,
    seller_account text not null,  -- of a run: the seller of the schedule; "": the default
    currency text not null check ((currency <> '') = is_run),
    cut_off_time timestamptz check (cut_off_time is null or is_run),
    state text not null check (state in ('GENERATING', 'OPEN', 'DONE')),
    cursor text not null,  -- of a run: the cursor in the wallets
    item_count bigint not null check (item_count >= generated_count),
    generated_count bigint not null check (generated_count >= rejected_count),
    rejected_count bigint not null check (rejected_count >= 0),
    -- sellers whose wallets have too little to pay
    skipped_count bigint not null default 0
        check (skipped_count >= 0 and (skipped_count = 0 or is_run)),
    version int not null check (version = case state when 'GENERATING' then 1 when 'OPEN' then 2
        else 3 end),
    create_time timestamptz not null,
    update_time timestamptz not null check (update_time >= create_time),
    done_time timestamptz check ((done_time is not null) = (state = 'DONE')),
    -- when its payouts are generated or continued; later after a failure
    next_run_time timestamptz not null default clock(),
    -- failures since its last progress
    failure_count int not null default 0 check (failure_count >= 0)
);
create index payout_batch_due on payout_batch (next_run_time, payout_batch_id)
    where state = 'GENERATING';
create index payout_batch_open on payout_batch (state, create_time, payout_batch_id)
    where state <> 'DONE';
create index payout_batch_open_by_id on payout_batch (payout_batch_id) where state = 'OPEN';

-- What a batch is to pay, or could not pay.
create table payout_batch_item (
    payout_batch_id text collate "C" not null references payout_batch,
    payout_id text collate "C" not null,
    seller_account text collate "C" not null,
    amount bigint,  -- null: as much as can be paid
    currency text not null,
    payout_destination_id text not null,
    state text not null check (state in ('REQUESTED', 'CREATED', 'REJECTED')),
    -- a serialized google.rpc.Status
    error bytea check ((error is not null) = (state = 'REJECTED')),
    primary key (payout_batch_id, payout_id)
);
create index payout_batch_item_rejected on payout_batch_item (payout_batch_id, payout_id)
    where state = 'REJECTED';
create index payout_batch_item_requested on payout_batch_item (payout_batch_id, payout_id)
    where state = 'REQUESTED';

-- Retries that callers requested, each done once.
create table payout_retry (
    payout_id text collate "C" not null references payout,
    request_id text collate "C" not null,
    caller text not null,
    reason text not null,
    create_time timestamptz not null,
    primary key (payout_id, request_id)
);
"""

RULES = (
    """
create function reject_transition() returns trigger language plpgsql as $$
begin
    raise exception '% cannot change like that', tg_table_name using errcode = 'P0001';
end $$;

create trigger version_increases before update on payout for each row
when (new.version <= old.version or new.update_time < old.update_time
    or new.paid_amount < old.paid_amount or new.returned_amount < old.returned_amount)
execute function reject_transition();

create trigger follows_transitions before update on payout_destination for each row
when (new.version <> old.version + 1 or new.update_time < old.update_time or new.awaits_approval
    and not old.awaits_approval
    or old.approved_by <> '' and new.approved_by <> old.approved_by or old.awaits_approval
        and not new.awaits_approval and new.approved_by = ''
    or not (old.state = new.state and old.awaits_approval and new.approved_by <> ''
        or (old.state, new.state) in (
    ('PENDING_VERIFICATION', 'VERIFIED'), ('PENDING_VERIFICATION', 'UNUSABLE'),
        ('PENDING_VERIFICATION', 'DISABLED'),
    ('VERIFIED', 'UNUSABLE'), ('VERIFIED', 'DISABLED'))))
execute function reject_transition();

create trigger follows_transitions before update on payout_batch for each row
when (old.state = 'DONE' or new.version < old.version or new.version > old.version + 1
    or new.generated_count < old.generated_count
    or new.rejected_count < old.rejected_count or new.skipped_count < old.skipped_count)
execute function reject_transition();

-- A return is recorded once and clears the acknowledgement. The only other change is one
-- acknowledgement.
create trigger returns_once before update on transfer for each row
when (case when (new.returned_amount, new.returned_currency, new.return_time) is distinct
    from (old.returned_amount, old.returned_currency, old.return_time)
    then old.returned_amount is not null or new.returned_amount is null or new.acknowledged_by <> ''
    else old.acknowledged_by <> '' or new.acknowledged_by = '' end)
execute function reject_change();


create function acknowledged_in_history() returns trigger language plpgsql security definer
    set search_path from current as $$
begin
    if not exists (
            select from payout_history h join recorded_event t
                on t.aggregate_id = 'payouts/' || h.payout_id
                and t.version = h.version
            where h.payout_id = new.payout_id and h.transition_reason = 'ACKNOWLEDGED'
                and (h.actor, h.reason) = (new.acknowledged_by, new.acknowledge_reason)) then
        raise exception 'an acknowledgement without its history row' using errcode = 'P0001';
    end if;
    return null;
end $$;
create trigger acknowledged_in_history after update on transfer for each row
    when (new.acknowledged_by <> '')
execute function acknowledged_in_history();
create trigger acknowledged_in_history after update on conflicting_report for each row
    when (new.acknowledged_by <> '')
execute function acknowledged_in_history();

create trigger decided_once before update on payout_batch_item for each row
    when (old.state <> 'REQUESTED' or new.state = 'REQUESTED')
execute function reject_change();

create trigger versions before update on payout_schedule for each row
when ((new.version = old.version + 1 or new.version = old.version and (new.next_time > old.next_time
    or new.next_time = old.next_time and new.failure_count = old.failure_count + 1)) is not true)
        execute
        function reject_transition();

"""
    # P4, E1: each version of a payout has its history row, each history row has its event, and the
    # last history row equals the payout.
    + statement_rule(
        "payout_has_history",
        "payout",
        (
            """
            select from changed p where exists (
                select from payout_history h where h.payout_id = p.payout_id
                    and h.version = p.version and h.to_state = p.state
                    and h.booked = p.booked offset 0) is not true""",
            "a payout changed without its history row",
        ),
        on=("insert", "update"),
    )
    # The same table as TRANSITIONS in core, and booking, and money that fits no transition.
    + statement_rule(
        "history_has_payout",
        "payout_history",
        (
            """
            select from changed h where (
                exists (select from payout p where p.payout_id = h.payout_id
                    and p.version >= h.version offset 0)
                and case when h.version = 1 then h.from_state is null and h.to_state = 'CREATED'
                    and not h.booked else h.from_state = (
                    select b.to_state from payout_history b where b.payout_id = h.payout_id
                        and b.version = h.version - 1) end
                and (h.version = 1 or case h.transition_reason
                    when 'BOOKED' then h.from_state = h.to_state and h.booked
                        and h.to_state in ('PAID', 'FAILED', 'REJECTED', 'CANCELLED', 'RETURNED')
                    when 'UNMATCHED_TRANSFER' then h.from_state = h.to_state and not h.booked
                        and h.to_state in ('PAID', 'FAILED', 'RETURNED')
                    when 'ACKNOWLEDGED' then h.from_state = h.to_state and h.booked
                        and h.actor <> '' and h.to_state in ('PAID', 'FAILED', 'RETURNED')
                        and exists (select from payout_history b where b.payout_id = h.payout_id
                            and b.version = h.version - 1 and b.booked offset 0)
                    else not h.booked and (h.from_state, h.to_state) in (
                        ('CREATED', 'AWAITING_APPROVAL'), ('CREATED', 'READY'),
                            ('CREATED', 'FAILED'), ('CREATED', 'CANCELLED'),
                        ('AWAITING_APPROVAL', 'READY'), ('AWAITING_APPROVAL', 'REJECTED'),
                            ('AWAITING_APPROVAL', 'CANCELLED'),
                        ('READY', 'SUBMITTING'), ('READY', 'CANCELLED'),
                        ('SUBMITTING', 'SUBMITTED'), ('SUBMITTING', 'IN_TRANSIT'),
                            ('SUBMITTING', 'PAID'), ('SUBMITTING', 'FAILED'),
                        ('SUBMITTED', 'IN_TRANSIT'), ('SUBMITTED', 'PAID'), ('SUBMITTED', 'FAILED'),
                        ('IN_TRANSIT', 'PAID'), ('IN_TRANSIT', 'FAILED'),
                            ('PAID', 'RETURNED')) end)) is not true""",
            "a history row does not follow its payout",
        ),
        (changes_without_event("'payouts/' || payout_id"), "a change has no event"),
    )
    + statement_rule(
        "new_batch_has_event",
        "payout_batch",
        (
            changes_without_event("'payoutBatches/' || payout_batch_id"),
            "a batch was created without its event",
        ),
    )
    + statement_rule(
        "changed_batch_has_event",
        "payout_batch",
        (
            """
            select 'payoutBatches/' || c.payout_batch_id, c.version from changed c
                join before b on b.payout_batch_id = c.payout_batch_id
            where c.version > b.version except select * from recorded_event""",
            "a batch changed without its event",
        ),
        on=("update",),
        with_old_rows=True,
    )
    # An attempt requests the amount that its payout sends to the bank.
    + statement_rule(
        "attempt_covers_payout",
        "attempt",
        (
            """
            select from changed a where exists (
                select from payout p where a.kind = 'payout' and p.payout_id = a.operation_id
                    and p.net_amount = a.amount
                    and p.currency = a.currency and p.provider = a.provider offset 0
            ) is not true""",
            "an attempt does not request the amount of its payout",
        ),
    )
    + """
create function states_are_listed() returns trigger language plpgsql security definer
set search_path = payout, pg_temp set plan_cache_mode = force_generic_plan
    set enable_seqscan = off as $$
begin
    delete from payout_in_state s where s.payout_id = any (array(
        select h.payout_id from changed h where h.from_state <> h.to_state
            and h.from_state not in ('CREATED', 'READY', 'SUBMITTING', 'PAID')));
    insert into payout_in_state (payout_id, owner, state, create_time)
    select p.payout_id, p.owner, p.state, p.create_time from changed h
    cross join lateral (  -- the last of several transitions in one statement
        select * from payout p where p.payout_id = h.payout_id and p.state = h.to_state offset 0) p
    where h.from_state <> h.to_state
        and h.to_state not in ('CREATED', 'READY', 'SUBMITTING', 'PAID') order by p.payout_id;
    return null;
end $$;
create trigger states_are_listed after insert on payout_history referencing new table as changed
    for each statement execute function states_are_listed();

create trigger append_only before update or delete or truncate on payout_history
    for each statement execute function reject_change();
create trigger append_only before update or delete or truncate on payout_retry
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on payout
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on payout_destination
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on transfer
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on payout_schedule
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on payout_batch
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on payout_batch_item
    for each statement execute function reject_change();
"""
)

EVENTS = require_change(
    {
        "payouts": (
            "select from payout_history h where h.payout_id = {id} and h.version = x.version"
        ),
        "payoutDestinations": (
            "select from payout_destination d where d.payout_destination_id = {id} and d.version = "
            "x.version"
        ),
        "payoutBatches": (
            "select from payout_batch b where b.payout_batch_id = {id} and b.version = x.version"
        ),
        "payoutSchedules": """select from payout_schedule s where s.version = x.version
            and s.currency = split_part({id}, '/', 2)
                and s.seller_account = case split_part({id}, '/', 1) when '-' then ''
                    else split_part({id}, '/', 1) end""",
        **SHARED_CHANGE_SELECTS,
    }
) + require_event(
    "payout_destination", "a destination", "'payoutDestinations/' || payout_destination_id"
)

GRANTS = """
grant usage on sequence reopen_lease_token to {service};
grant select on payout_in_state to {service};
grant select, insert on payout_destination, payout, payout_history, transfer, payout_schedule,
    payout_batch, payout_batch_item, payout_retry
    to {service};
grant update (state, verified_time, decline_code, awaits_approval, approved_by, approve_reason,
    disabled_by, disable_reason, version, update_time) on payout_destination to {service};
grant update (state, booked, failure_reason, decline_code, provider_reference, attempt_count,
    paid_amount, returned_amount, version, update_time)
    on payout to {service};
grant update (returned_amount, returned_currency, return_time, acknowledged_by, acknowledge_reason,
    acknowledge_time) on transfer to {service};
grant select, insert, update, delete on completed_payout_poll to {service};
grant update (interval, weekday, day_of_month, cut_off, time_zone, minimum_amount, fee, reserve,
    has_own_terms, owner, next_time, next_run_time, failure_count, caller,
              traceparent, version, update_time) on payout_schedule to {service};
grant update (state, cursor, item_count, generated_count, rejected_count, skipped_count, version,
    update_time, done_time, next_run_time, failure_count) on payout_batch to {service};
grant update (state, error) on payout_batch_item to {service};
"""

UNSEALED = frozenset({"payout_in_state"})  # recomputed from payouts


def upgrade() -> None:
    create(
        "payout",
        operations(*_KINDS),
        TABLES,
        conflicting_reports("payout_id", "references payout"),
        OUTBOX,
        dead_letters(*_KINDS),
        WEBHOOK_EVENTS,
        ALERTS,
        RULES,
        EVENTS,
        GRANTS,
        unsealed=UNSEALED,
    )
