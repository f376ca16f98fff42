"""Batches of payouts: their states, and the ids of what runs of schedules make."""

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
    """Its payouts are being made; all of them are made; all of them have come to rest."""

    GENERATING = "GENERATING"
    OPEN = "OPEN"
    DONE = "DONE"


NEXT_STATE = {BatchState.GENERATING: BatchState.OPEN, BatchState.OPEN: BatchState.DONE}


class ItemState(StrEnum):
    """What became of one payout of a batch: nothing so far, a payout, a refusal."""

    REQUESTED = "REQUESTED"
    CREATED = "CREATED"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class NewBatch:
    """Payouts to be made together, parsed: a list, sorted by id, or, where that is empty, a run of
    a seller's schedule ("": the default).
    """

    payout_batch_id: str
    caller: str
    owner: str
    """"": the platform's, for the sellers of every owner."""
    payouts: tuple[NewPayout, ...] = ()
    seller_account: str = ""
    currency: str = ""

    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values, in whatever order the payouts came."""
        head = (self.payout_batch_id, self.owner, self.seller_account, self.currency)
        return fingerprint(*head, *(value for payout in self.payouts for value in payout.values()))


def first_difference(sent: NewBatch, stored: NewBatch) -> str:
    """The contract's name of the first field in which two batches of one id differ; payouts are
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
    """The id of the run of a cut-off, and of its batch: the same from whatever process, so that a
    cut-off has one run.
    """
    return f"{_RUN_PREFIX}{currency}-{cut_off.astimezone(UTC):%Y%m%dT%H%MZ}"


def derive_payout_id(run_id: str, seller_account: str) -> str:
    """The id of a payout that a run makes: the same for the same run and seller, so that one that
    is begun again pays nobody twice.

    `run_id` is the id of the batch that a caller asked for, or `run_id`: that too for a seller with
    a schedule of its own, who has no batch, but may have left the default only just now.
    """
    return f"{RUN_PAYOUT_PREFIX}{digest_text(run_id, seller_account)}"


def parse_batch_id(text: str, field: str = "payout_batch_id") -> str:
    """A caller's id of a batch; those of runs are the platform's. Raises FIELD_REQUIRED,
    FIELD_INVALID, CARD_NUMBER_REJECTED.
    """
    if text.startswith(_RUN_PREFIX):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{field} must not begin with {_RUN_PREFIX}: such ids are the platform's.",
            field=field,
        )
    return parse_id(text, field)
