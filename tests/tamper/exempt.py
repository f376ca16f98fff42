"""What verify does not look at, by table or column, and why: nobody's money or history depends on it."""

from __future__ import annotations

_LEASES = "a lease: whoever works on an operation sets it anew, and an edit only delays or repeats idempotent work"
_ONE_OF_MANY = "one process's claim to a periodic task, set anew within seconds"
_MARKS = "tells a lost COMMIT from one that was never made, within an hour of its transaction"

EXEMPT: dict[str, str] = {
    **{f"{schema}.mark": _MARKS for schema in ("payment", "ledger", "wallet", "payout", "event")},
    **{f"{schema}.duty": _ONE_OF_MANY for schema in ("payment", "payout")},
    **{f"{schema}.due.{column}": _LEASES for schema in ("payment", "payout") for column in ("lease_until", "lease_token", "held")},
}
