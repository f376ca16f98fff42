"""Seals: hashes of rows, which show `verify` a change by any role but the service's."""

from collections.abc import Mapping

SEALED_ON_UPDATE: Mapping[str, str] = {
    "event.horizon": "t.cursor = 0",
    "payment.attempt": (
        "(t.outcome, t.provider_reference, t.failure_reason, t.decline_code) = ('', '', '', '') "
        "and (t.routing_rule, t.routing_reason, t.fallback_provider) = ('', '', '') "
        "and t.moved_amount is null and t.provider_fee is null and t.end_time is null"
    ),
    "payment.operation": (
        "(t.retry_reason, t.detail, t.retry_counts::text, t.not_found_count, t.lookup_only, "
        "t.has_changed, t.maybe_sent) = "
        "('', '', '{}', 0, false, false, false) and t.expire_time is null"
    ),
}
"""Tables whose rows are sealed only when they first change, and the condition that a row meets
until then. Every payment creates such rows, and they contain only derived values. A row that does
not meet the condition is sealed from the start.
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
_SEALED_AT_FIRST = """
create trigger z_sealed_at_first before insert on {table} for each row
    when (session_user = '{service}' and not ({condition})) execute function seal();
"""


def seal(schema: str, table: str) -> str:
    """Gives each row of a table a hash of its content, written whenever its service writes the row.
    A column that is added later invalidates the existing seals.
    """
    condition = SEALED_ON_UPDATE.get(f"{schema}.{table}", "")
    script = _SEALED.replace("{events}", "update" if condition else "insert or update")
    if condition:
        script += _SEALED_AT_FIRST.replace("{condition}", condition.replace("t.", "new."))
    return script.replace("{table}", table)
