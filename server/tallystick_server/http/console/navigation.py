"""The links on every page."""

from __future__ import annotations

from tallystick_server.http.console.links import ROOT, path_of

NAVIGATION = (
    (
        "Look up",
        (
            ("Overview", ROOT),
            ("Payments", path_of("payments")),
            ("Payouts", path_of("payouts")),
            ("Wallets", path_of("sellers")),
            ("Accounts", path_of("accounts")),
            ("Trial balance", path_of("trial-balance")),
        ),
    ),
    (
        "Work",
        (
            ("Dead letters", path_of("dead-letters")),
            ("Approvals", path_of("approvals")),
            ("Unapplied charges", path_of("unapplied-charges")),
            ("Breaks", path_of("breaks")),
            ("Alerts", path_of("alerts")),
        ),
    ),
    (
        "Reconciliation",
        (
            ("Statement files", path_of("statement-files")),
            ("Clearing report", path_of("clearing")),
        ),
    ),
    (
        "Platform",
        (
            ("Metrics", path_of("metrics")),
            ("Traces", path_of("traces")),
            ("Settings", path_of("settings")),
        ),
    ),
)
"""The groups, each with its links: text and path."""


def section_of(path: str) -> str:
    """The link of the navigation to which a page belongs; "": to none."""
    paths = [href for _, links in NAVIGATION for _, href in links]
    start = "/".join(path.split("/")[:3])
    return start if start in paths else ""
