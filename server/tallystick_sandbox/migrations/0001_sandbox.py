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

GRANTS = """
grant select, insert, update (state, code) on charge to {service};
grant select, insert, update (state, returned_amount) on transfer to {service};
"""


def upgrade() -> None:
    create("sandbox", TABLES, GRANTS, unsealed=None)
