"""The edits that verify does not report, by table or column, and why no money or history depends on
them.
"""

from __future__ import annotations

from pathlib import Path

from tallystick_server.app.services import SERVICES

PAGE_PATH = Path(__file__).parents[2] / "docs" / "reference" / "verify-exemptions.md"
"""The page for operators; `python -m tests.tampering.exempt` writes it."""

_COMMIT_MARKER = "used within an hour, if the answer to a COMMIT was lost"
_LEADER_LEASE = "a lease on a periodic task; renewed within seconds"
_LEASE = "a lease; an edit only delays or repeats idempotent work"
_FAILED_TRY = "explains a delay; the oldest are replaced, and nothing depends on them"
_METRICS = "the history of metrics, which is deleted after 30 days; nothing depends on it"
_TRACES = "traces, which are deleted after some hours; nothing depends on them"
_DISPLAY_ONLY = "of a line: for people; read only while its file was reconciled"
_POLL_SCHEDULE = "of a completed operation or attempt: how long it is polled"

EXEMPTIONS: dict[str, str] = {
    "ledger.account.create_time": "informational; written just before the account's first entry",
    "ledger.relayed.sequence": "a lower value resends events; one past the end is reported",
    "wallet.wallet.release_delay": "without a policy: the default when the wallet was opened",
    "wallet.hold.(row)": "a TOMBSTONE has moved no money; other holds are reported",
    "wallet.seller_assignment.(row)": "not approved: it has changed nothing; others are counted",
    "payment.seller_owner.(row)": "a cache of WalletService's answer; it is refreshed",
    "payment.status_link.(row)": "a link shows a buyer the state of a payment; it moves nothing",
    "payment.conflicting_report.(row)": "moves no money; its alert is a row and an event",
    "payment.failed_charge_poll.(row)": _POLL_SCHEDULE,
    "payout.completed_payout_poll.(row)": _POLL_SCHEDULE,
    "reconciliation.staged_line": "lines of a file that is loading; checked when it is reconciled",
    "reconciliation.staged_chunk": "digests of a file that is loading; deleted with its lines",
    "reconciliation.check_position": "how far events were examined; a check moves no money",
    "reconciliation.break_rule.(row)": "it classifies later breaks; versions in use are checked",
    "reconciliation.break_sum.number": "tells the rows of a sum apart; the sum stays",
    **{f"monitoring.{table}": _METRICS for table in ("process", "series", "sample", "thinning")},
    **{f"monitoring.{table}": _TRACES for table in ("trace", "span", "span_total")},
    **{
        f"reconciliation.statement_line.{column}": _DISPLAY_ONLY
        for column in (
            "line_number",
            "client_reference",
            "original_amount",
            "original_currency",
            "value_date",
            "code",
            "text",
            "match_rule",
        )
    },
    **{
        f"{schema}.operation.{column}": _LEASE
        for schema in (spec.name for spec in SERVICES if spec.calls_providers)
        for column in ("lease_until", "lease_token", "is_leased")
    },
    **{f"{spec.name}.failed_try.(row)": _FAILED_TRY for spec in SERVICES if spec.calls_providers},
    **{f"{spec.name}.leader_lease": _LEADER_LEASE for spec in SERVICES if spec.publishes_events},
    **{f"{spec.name}.commit_marker": _COMMIT_MARKER for spec in SERVICES},
}

_PAGE_HEADER = """# What `tallystick verify` does not report

This page lists the edits of stored rows that `tallystick verify` does not report, and why they do
no harm.

`verify` reports every other edit by someone who bypasses the services. No money and no history
depends on the columns below. `python -m tests.tampering.exempt` writes this page.

| in the table | meaning |
|---|---|
| `schema.table.column` | edits of this column |
| `schema.table.(row)` | rows that are added or deleted |
| `schema.table` | all edits of the table |

## Exemptions

| edit of | why it is not reported |
|---|---|
"""
_PAGE_FOOTER = """
A wallet or a ledger account without entries has moved no money. Of those, `verify` compares only
the amounts.

## Limits of seals

Each sealed row holds the SHA-256 hash of its content, called a seal. The service writes both
together, and `verify` compares them. A seal contains no secret. Someone who edits a row and also
recomputes its seal, its hashes and every dependent row is not detected.
"""


def render_page() -> str:
    """The page that lists what verify does not report."""
    return (
        _PAGE_HEADER
        + "".join(f"| `{name}` | {reason} |\n" for name, reason in EXEMPTIONS.items())
        + _PAGE_FOOTER
    )


if __name__ == "__main__":
    PAGE_PATH.write_text(render_page())
