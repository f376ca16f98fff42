"""What verify does not look at, by table or column, and why: nobody's money or history depends on
it.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

PAGE_PATH = Path(__file__).parents[2] / "docs" / "reference" / "verify-exemptions.md"
"""The page that says so to operators; `python -m tests.tampering.exempt` writes it."""

_LEASES = (
    "a lease: whoever works on an operation sets it anew, and an edit only delays or repeats "
    "idempotent work"
)
_LEADER_LEASES = "one process's claim to a periodic task, set anew within seconds"
_COMMIT_MARKERS = (
    "tells a lost COMMIT from one that was never made, within an hour of its transaction"
)

_ACCOUNT_CREATION = (
    "shown only: an account is opened in a transaction of its own, before the first that is "
    "posted to it"
)
_RELAY_CURSOR = (
    "from a lower place on, EventService is sent again what it has, and drops it; a higher one "
    "than the book's end is named"
)
_DEFAULT_RELEASE_DELAY = (
    "of a wallet without a policy of its own: the setting when it was opened, which is kept "
    "nowhere else"
)
_CACHED_OWNER = "a copy of what WalletService says, asked for anew; a missing row is asked for"
_UNAPPROVED_REQUEST = (
    "a request that was not approved has changed nothing; one that was is counted by its seller's "
    "version"
)
_TOMBSTONE = (
    "one that is TOMBSTONE has moved nothing, and shuts out only a placement that is long over; "
    "any other is in wallet_entry, and is named"
)
_POLL_SCHEDULE = (
    "of what has ended: a row more or less says only until when its provider is asked for news, by "
    "a setting of that time"
)
_CONFLICTING_REPORT = "moves no money; the alert about it is a row and an event"

EXEMPTIONS: dict[str, str] = {
    "ledger.account.create_time": _ACCOUNT_CREATION,
    "ledger.relayed.sequence": _RELAY_CURSOR,
    "wallet.wallet.release_delay": _DEFAULT_RELEASE_DELAY,
    "payment.seller_owner.(row)": _CACHED_OWNER,
    "wallet.seller_assignment.(row)": _UNAPPROVED_REQUEST,
    "wallet.hold.(row)": _TOMBSTONE,
    "payment.failed_charge_poll.(row)": _POLL_SCHEDULE,
    "payment.conflicting_report.(row)": _CONFLICTING_REPORT,
    "payout.completed_payout_poll.(row)": _POLL_SCHEDULE,
    **{
        f"{schema}.commit_marker": _COMMIT_MARKERS
        for schema in ("payment", "ledger", "wallet", "payout", "event")
    },
    **{
        f"{schema}.leader_lease": _LEADER_LEASES
        for schema in ("payment", "ledger", "wallet", "payout")
    },
    **{
        f"{schema}.operation.{column}": _LEASES
        for schema in ("payment", "payout")
        for column in ("lease_until", "lease_token", "is_leased")
    },
}

_PAGE_HEADER = """# What `tallystick verify` does not see

`verify` is to name the edit of any stored row by somebody who goes past its service, except for the
columns below. No money and no history depends on them. `(row)` means that a row was added or
deleted; a table without a column means the whole table. `tests/tampering/exempt.py` writes this page.

A wallet or a ledger account without entries is opened before the first of them, and has moved
nothing: of it, verify compares only the amounts.

A seal has no secret. Somebody who edits a row and also computes its seal, its hashes and every row
that follows from it is not seen either.

| table or column | why an edit is not seen |
|---|---|
"""


def render_page() -> str:
    """The page of what verify does not look at, a line for each reason."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in EXEMPTIONS.items():
        by_reason[reason].append(f"`{name}`")
    return _PAGE_HEADER + "".join(
        f"| {', '.join(names)} | {reason} |\n" for reason, names in by_reason.items()
    )


if __name__ == "__main__":
    PAGE_PATH.write_text(render_page())
