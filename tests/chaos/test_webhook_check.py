"""The checker of webhooks in chaos runs."""

from __future__ import annotations

import pytest

from tests.chaos.webhook_check import check_coverage


@pytest.mark.parametrize(
    ("minutes", "http_kills", "webhooks_delivered", "violations"),
    [
        (10.0, 3, 900, []),
        (10.0, 0, 900, ["no HTTP process was killed"]),
        (10.0, 3, 0, ["no webhook was delivered"]),
        (1.0, 0, 0, ["no HTTP process was killed", "no webhook was delivered"]),
        (0.5, 0, 0, []),
    ],
)
def test_a_run_without_webhooks_does_not_pass(
    minutes: float, http_kills: int, webhooks_delivered: int, violations: list[str]
) -> None:
    """A run that is long enough fails if it killed no HTTP process, or delivered no webhook."""
    assert check_coverage(minutes, http_kills, webhooks_delivered) == violations
