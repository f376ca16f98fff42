"""The sandbox provider's own logs of charges and payouts. Tests compare the platform's results with
them.
"""

from tallystick_storage.migrations import create

revision = "sandbox_0001"
down_revision = None
branch_labels = ("sandbox",)
depends_on = None

TABLES = """
create table charge (
    key text collate "C" not null,  -- the idempotency key
    -- above 1: the key was used again after it was forgotten, and the buyer was charged again
    generation int not null,
    fingerprint bytea not null,
    provider text collate "C" not null,  -- the name of the sandbox: each knows only its own
    charge_id text collate "C" not null,
    reference text not null,
    state text not null check (state in ('SUCCEEDED', 'DECLINED', 'PENDING', 'ERROR')),
    amount bigint not null,  -- charged, in minor units
    currency text not null,
    fault text not null,  -- selected by the token
    code text not null,
    create_time timestamptz not null,
    primary key (key, generation)
);
create index charge_by_charge_id on charge (charge_id);

create table transfer (
    key text collate "C" not null,
    generation int not null,  -- above 1: paid again
    fingerprint bytea not null,
    provider text collate "C" not null,
    payout_id text collate "C" not null,
    reference text not null,
    state text not null
        check (state in ('SUBMITTED', 'IN_TRANSIT', 'PAID', 'RETURNED', 'DECLINED', 'ERROR')),
    amount bigint not null,  -- paid, in minor units
    currency text not null,
    returned_amount bigint check ((returned_amount is not null) = (state = 'RETURNED')),
    fault text not null,
    code text not null,
    create_time timestamptz not null,
    primary key (key, generation)
);
create index transfer_by_payout_id on transfer (payout_id);
"""

STRIPE_TABLES = """
-- An object of the Stripe look-alike's API, or an event.
create table stripe_object (
    id text collate "C" primary key,
    type text not null,
    account text collate "C" not null,
    body jsonb not null,  -- as the API shows it
    plan jsonb not null,  -- what the sandbox will do with it
    due_time timestamptz,  -- when it advances by itself; null: never
    sequence bigint generated always as identity,  -- the order of lists
    create_time timestamptz not null
);
create index stripe_object_by_sequence on stripe_object (account, type, sequence);
create index stripe_object_by_body on stripe_object using gin (body jsonb_path_ops);
create index stripe_object_due on stripe_object (due_time) where due_time is not null;

-- The sum of the balance transactions of an account.
create table stripe_balance (
    account text collate "C" not null,
    currency text collate "C" not null,
    total bigint not null,  -- in minor units
    primary key (account, currency)
);

create table stripe_key (
    account text collate "C" not null,
    key text collate "C" not null,  -- the idempotency key
    fingerprint bytea not null,
    request_id text not null,
    status int not null,  -- of HTTP
    body text not null,
    create_time timestamptz not null,
    primary key (account, key)
);
create index stripe_key_by_time on stripe_key (create_time);

-- An event for one webhook endpoint.
create table stripe_delivery (
    event_id text collate "C" not null,
    endpoint text collate "C" not null,
    try_count int not null,
    status int,  -- of the last try; 0: no answer
    next_try_time timestamptz,  -- null: delivered, or given up
    create_time timestamptz not null,
    primary key (event_id, endpoint)
);
create index stripe_delivery_due on stripe_delivery (next_try_time)
    where next_try_time is not null;
"""

GRANTS = """
grant select, insert, update (state, code) on charge to {service};
grant select, insert, update (state, returned_amount) on transfer to {service};
grant select, insert, update (body, plan, due_time) on stripe_object to {service};
grant select, insert, update (total) on stripe_balance to {service};
grant select, insert, update, delete on stripe_key to {service};
grant select, insert, update (try_count, status, next_try_time) on stripe_delivery to {service};
"""


def upgrade() -> None:
    create("sandbox", TABLES, STRIPE_TABLES, GRANTS, unsealed=None)
