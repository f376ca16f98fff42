"""Batches of payouts: their states, and the ids of schedule runs and their payouts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.fingerprint import digest_text, fingerprint
from tallystick_core.payout.request import RUN_PAYOUT_PREFIX, NewPayout
from tallystick_core.payout.request import first_difference as differs
from tallystick_core.validation import parse_id

_RUN_PREFIX = "run-"


class BatchState(StrEnum):
    """GENERATING: payouts are being created. OPEN: all are created. DONE: all are final."""

    GENERATING = "GENERATING"
    OPEN = "OPEN"
    DONE = "DONE"


NEXT_STATE = {BatchState.GENERATING: BatchState.OPEN, BatchState.OPEN: BatchState.DONE}


class ItemState(StrEnum):
    """The result for one payout of a batch: none yet, created, or rejected."""

    REQUESTED = "REQUESTED"
    CREATED = "CREATED"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A parsed request to create payouts together. `payouts` is sorted by id. If it is empty, the
    batch is a run of a seller's schedule ("": the default schedule).
    """

    payout_batch_id: str
    caller: str
    owner: str
    """"": the platform, for the sellers of every owner."""
    payouts: tuple[NewPayout, ...] = ()
    seller_account: str = ""
    currency: str = ""

    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values, regardless of the order of the payouts."""
        head = (self.payout_batch_id, self.owner, self.seller_account, self.currency)
        return fingerprint(*head, *(value for payout in self.payouts for value in payout.values()))


def first_difference(sent: NewBatch, stored: NewBatch) -> str:
    """The API name of the first field in which two batches with the same id differ. Payouts are
    compared in the order of their ids.
    """
    if bool(sent.payouts) != bool(stored.payouts):
        return "list" if sent.payouts else "run"
    for name in ("seller_account", "currency"):
        if getattr(sent, name) != getattr(stored, name):
            return f"run.{name}"
    stored_payouts = {payout.payout_id: payout for payout in stored.payouts}
    for payout in sent.payouts:
        if payout.payout_id in stored_payouts and payout != stored_payouts[payout.payout_id]:
            return f"list.payouts.{differs(payout, stored_payouts[payout.payout_id])}"
    return "list.payouts"


def format_run_id(currency: str, cut_off: datetime) -> str:
    """The id of a cut-off's run, and of its batch. Every process derives the same id, so a cut-off
    has one run.
    """
    return f"{_RUN_PREFIX}{currency}-{cut_off.astimezone(UTC):%Y%m%dT%H%MZ}"


def derive_payout_id(run_id: str, seller_account: str) -> str:
    """The id of a payout that a run creates. It depends only on the run and the seller, so a
    restarted run pays nobody twice.

    `run_id` is the id of the batch that a caller requested, or the result of `format_run_id`. A
    seller with a schedule of its own uses the same run id, so a change of schedule at the cut-off
    pays once.
    """
    return f"{RUN_PAYOUT_PREFIX}{digest_text(run_id, seller_account)}"


def parse_batch_id(text: str) -> str:
    """Parses a caller's batch id. The prefix of runs is reserved for the platform. Raises
    FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REJECTED.
    """
    if text.startswith(_RUN_PREFIX):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"payout_batch_id must not begin with {_RUN_PREFIX}: such ids are the platform's.",
            field="payout_batch_id",
        )
    return parse_id(text, "payout_batch_id")
