"""The operation ids of payouts and destinations."""

from __future__ import annotations

from collections.abc import Collection

from tallystick_core.payout.state import _DESTINATION_PREFIX, _PAYOUT_PREFIX


def format_payout_operation_id(payout_id: str) -> str:
    """What a provider's key names of a payout; see `provider_key`."""
    return f"{_PAYOUT_PREFIX}{payout_id}"


def format_payout_hold_id(payout_id: str) -> str:
    """The id of a payout's hold in the wallet, in the namespace that is for payouts alone."""
    return f"payouts/{payout_id}"


def format_destination_operation_id(payout_destination_id: str) -> str:
    """The demand to verify a destination."""
    return f"{_DESTINATION_PREFIX}{payout_destination_id}"


def split_operation_ids(operation_ids: Collection[str]) -> tuple[list[str], list[str]]:
    """The ids of the payouts, and those of the destinations, that are demanded."""
    payouts = [
        id_.removeprefix(_PAYOUT_PREFIX) for id_ in operation_ids if id_.startswith(_PAYOUT_PREFIX)
    ]
    return payouts, [
        id_.removeprefix(_DESTINATION_PREFIX)
        for id_ in operation_ids
        if id_.startswith(_DESTINATION_PREFIX)
    ]
