"""The operation ids of payouts and destinations."""

from __future__ import annotations

from collections.abc import Collection

_PAYOUT_PREFIX, _DESTINATION_PREFIX = "p-", "d-"


def format_payout_operation_id(payout_id: str) -> str:
    """The operation id of a payout, part of its provider key; see `format_provider_key`."""
    return f"{_PAYOUT_PREFIX}{payout_id}"


def format_payout_hold_id(payout_id: str) -> str:
    """The wallet hold id of a payout, in a namespace reserved for payouts."""
    return f"payouts/{payout_id}"


def format_destination_operation_id(payout_destination_id: str) -> str:
    """The operation id of a destination's verification."""
    return f"{_DESTINATION_PREFIX}{payout_destination_id}"


def split_operation_ids(operation_ids: Collection[str]) -> tuple[list[str], list[str]]:
    """Splits operation ids into payout ids and destination ids, in that order."""
    payouts = [
        id_.removeprefix(_PAYOUT_PREFIX) for id_ in operation_ids if id_.startswith(_PAYOUT_PREFIX)
    ]
    return payouts, [
        id_.removeprefix(_DESTINATION_PREFIX)
        for id_ in operation_ids
        if id_.startswith(_DESTINATION_PREFIX)
    ]
