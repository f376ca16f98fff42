"""Seals: hashes of rows, which show `verify` a change by any role but the service's."""

from collections.abc import Mapping

SEALED_ON_UPDATE: Mapping[str, str] = {
    "event.horizon": "t.cursor = 0",
    "payment.attempt": (
        "(t.outcome, t.provider_reference, t.failure_reason, t.decline_code) = ('', '', '', '') "
        "and t.moved_amount is null and t.provider_fee is null and t.end_time is null"
    ),
    "payment.operation": (
        "(t.retry_reason, t.detail, t.retry_counts::text, t.not_found_count, t.lookup_only, "
        "t.has_changed, t.maybe_sent) = "
        "('', '', '{}', 0, false, false, false) and t.expire_time is null"
    ),
}
"""Tables whose rows are sealed only when they first change, and the condition that a row meets
until then. Every payment creates such rows, and they contain only derived values.
"""

SEAL_FUNCTION = """
-- The hash of the row that its service wrote. If another role changes the row, the hash stays as it
-- is and verify reports the row.
create or replace function seal() returns trigger language plpgsql as $$
begin
    new.seal := null;
    new.seal := sha256(record_send(new));
    return new;
end $$;
"""
_SEALED = """
alter table {table} add seal bytea;
create trigger z_sealed before {events} on {table} for each row
    when (session_user = '{service}') execute function seal();
"""


def seal(schema: str, table: str) -> str:
    """Gives each row of a table a hash of its content, written whenever its service writes the row.
    A column that is added later invalidates the existing seals.
    """
    return _SEALED.replace("{table}", table).replace(
        "{events}", "update" if f"{schema}.{table}" in SEALED_ON_UPDATE else "insert or update"
    )
