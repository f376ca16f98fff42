"""Rows of the history of orders and of payouts."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple


class TransitionRow(NamedTuple):
    """A transition of an order or a payout. `from_state` "" or None: it was created."""

    version: int
    from_state: str | None
    to_state: str
    transition_reason: str
    actor: str
    reason: str
    create_time: datetime
