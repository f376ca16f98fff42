"""The kinds of breaks about bookings, and how far events were examined for them."""

from tallystick_storage.migrations import run

revision = "reconciliation_0004"
down_revision = "reconciliation_0003"
branch_labels = None
depends_on = None

_KINDS = """
    'CHARGE_NOT_BOOKED', 'CHARGE_UNKNOWN', 'PAYOUT_NOT_BOOKED', 'PAYOUT_UNKNOWN', 'ROUNDING',
    'AMOUNT_DIFFERS', 'CURRENCY_DIFFERS', 'SIGN_DIFFERS', 'DATE_DIFFERS', 'FEE_DIFFERS',
    'DUPLICATE_LINE', 'LINE_CORRECTED', 'REFUND_NOT_BOOKED', 'DISPUTE_NOT_BOOKED', 'RESERVE',
    'TRANSFER', 'CONVERSION', 'PROVIDER_ADJUSTMENT', 'SETTLEMENT_FAILED', 'BANK_ENTRY_UNKNOWN',
    'LINE_UNKNOWN', 'MISSING_IN_FILE', 'BALANCE_GAP', 'BALANCE_DIFFERS', 'LEDGER_UNBALANCED',
    'WALLET_DIFFERS', 'ORDER_DIFFERS', 'HOLD_DIFFERS'
"""


def _allow_kinds(table: str) -> str:
    return f"""
alter table {table} drop constraint {table}_kind_check,
    add constraint {table}_kind_check check (kind in ({_KINDS}));
"""


TABLES = """
-- The cursor of the last event that a check has examined.
create table check_position (
    check_name text collate "C" primary key,
    event_cursor bigint not null check (event_cursor >= 0)
);
grant select, insert, update (event_cursor) on check_position to {service};
"""


def upgrade() -> None:
    run("reconciliation", _allow_kinds("break"), _allow_kinds("break_rule"), TABLES)
