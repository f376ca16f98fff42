"""The effects of payout provider outcomes: payout transitions and money movements. Money that moved
is always booked, and exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tallystick_core.fingerprint import digest_text
from tallystick_core.ledger.posting_rules import (
    JournalLine,
    PostingKind,
    payout_lines,
    payout_return_lines,
    unapplied_payout_lines,
)
from tallystick_core.payout.state import (
    HOLD_CAPTURED,
    POSSIBLY_SENT,
    TERMINAL_STATES,
    TRIGGERS,
    VERBS,
    PayoutState,
    PayoutTrigger,
)
from tallystick_core.provider.outcome import (
    Declined,
    PayoutFailure,
    PayoutOutcome,
    Returned,
    Succeeded,
)
from tallystick_core.state_machine import invalid_state_error


class TransferMatch(StrEnum):
    """How a reported transfer matches its payout. The names are those of
    `tallystick.payout.v1.TransferMatch`.
    """

    EXACT = "EXACT"
    AFTER_FAILURE = "AFTER_FAILURE"
    AMOUNT_MISMATCH = "AMOUNT_MISMATCH"
    DUPLICATE = "DUPLICATE"
    CURRENCY_MISMATCH = "CURRENCY_MISMATCH"


@dataclass(frozen=True, slots=True)
class Transfer:
    """A bank transfer that a provider reports for a payout, in minor units. `returned_amount` is
    the part that was returned; None: nothing was returned.
    """

    reference: str
    amount: int
    currency: str
    match: TransferMatch
    returned_amount: int | None = None
    returned_currency: str = ""

    @property
    def has_valid_return(self) -> bool:
        """Whether the transfer was returned, in its currency and at most in full."""
        return (
            self.returned_amount is not None
            and self.returned_currency == self.currency
            and self.returned_amount <= self.amount
        )

    @property
    def needs_no_operator(self) -> bool:
        """Whether it was paid as requested, not after a failure, and any return is valid."""
        return self.match is TransferMatch.EXACT and (
            self.returned_amount is None or self.has_valid_return
        )


@dataclass(frozen=True, slots=True)
class PayoutRecord:
    """The stored state of a payout when an outcome is applied. `net_amount` is the amount requested
    from the provider. `transfers` is keyed by reference.
    """

    state: PayoutState
    net_amount: int
    currency: str
    transfers: Mapping[str, Transfer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutcomeEffect:
    """The effect of an outcome: triggers in order, each a new version, and the new or changed
    transfers.
    """

    triggers: tuple[PayoutTrigger, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    failure: PayoutFailure | None = None
    """The failure reason, if the payout fails."""
    is_conflicting: bool = False
    """The outcome contradicts an earlier one and needs an operator. Either a PAID payout is
    declined, although only a return gives its money back, or a known transfer has another amount.
    """


def apply_outcome(payout: PayoutRecord, outcome: PayoutOutcome) -> OutcomeEffect:
    """The effect of a provider outcome on a payout. Idempotent, and independent of arrival order.
    Money that moved is always booked.

    Raises INVALID_STATE for a payout that was never sent.
    """
    if payout.state not in POSSIBLY_SENT:
        raise invalid_state_error("payout", payout.state, VERBS[TRIGGERS[type(outcome)]])
    match outcome:
        case Succeeded():
            return _on_paid(payout, outcome)
        case Returned():
            return _on_returned(payout, outcome)
        case Declined() if payout.state is PayoutState.PAID:
            return OutcomeEffect(is_conflicting=True)
        case _ if payout.state in TERMINAL_STATES:
            return OutcomeEffect()
        case Declined():
            return OutcomeEffect((PayoutTrigger.DECLINED,), failure=_failure_reason(outcome))
        case _:
            return OutcomeEffect((TRIGGERS[type(outcome)],))


def _failure_reason(declined: Declined) -> PayoutFailure:
    """The reason of a declined payout. Reasons that payouts do not have become PROVIDER_DECLINED;
    the provider's code keeps the detail.
    """
    return (
        declined.reason
        if isinstance(declined.reason, PayoutFailure)
        else PayoutFailure.PROVIDER_DECLINED
    )


def _on_paid(payout: PayoutRecord, outcome: Succeeded) -> OutcomeEffect:
    previous = payout.transfers.get(outcome.reference)
    if previous is not None:
        return OutcomeEffect(
            is_conflicting=(outcome.amount, outcome.currency)
            != (previous.amount, previous.currency)
        )
    transfer = Transfer(
        outcome.reference, outcome.amount, outcome.currency, _match(payout, outcome)
    )
    if payout.state in TERMINAL_STATES:
        return OutcomeEffect((PayoutTrigger.UNMATCHED_TRANSFER,), (transfer,))
    if transfer.match is TransferMatch.EXACT:
        return OutcomeEffect((PayoutTrigger.SUCCEEDED,), (transfer,))
    return OutcomeEffect((PayoutTrigger.DECLINED,), (transfer,), PayoutFailure.PROVIDER_MISMATCH)


def _match(payout: PayoutRecord, outcome: Succeeded) -> TransferMatch:
    if outcome.currency != payout.currency:
        return TransferMatch.CURRENCY_MISMATCH
    if payout.transfers or payout.state in HOLD_CAPTURED:
        return TransferMatch.DUPLICATE
    if outcome.amount != payout.net_amount:
        return TransferMatch.AMOUNT_MISMATCH
    return (
        TransferMatch.AFTER_FAILURE if payout.state is PayoutState.FAILED else TransferMatch.EXACT
    )


def _on_returned(payout: PayoutRecord, outcome: Returned) -> OutcomeEffect:
    transfer = payout.transfers.get(outcome.reference)
    if transfer is not None:
        return _on_transfer_returned(transfer, outcome)
    # The transfer was not reported, but follows from the return.
    paid_effect = _on_paid(payout, Succeeded(outcome.reference, payout.net_amount, payout.currency))
    return_effect = _on_transfer_returned(paid_effect.transfers[0], outcome)
    return replace(return_effect, triggers=paid_effect.triggers + return_effect.triggers)


def _on_transfer_returned(transfer: Transfer, outcome: Returned) -> OutcomeEffect:
    if transfer.returned_amount is not None:
        return OutcomeEffect(
            is_conflicting=(outcome.amount, outcome.currency)
            != (transfer.returned_amount, transfer.returned_currency)
        )
    updated_transfer = replace(
        transfer, returned_amount=outcome.amount, returned_currency=outcome.currency
    )
    is_expected_return = transfer.match is TransferMatch.EXACT and updated_transfer.has_valid_return
    return OutcomeEffect(
        (PayoutTrigger.RETURNED if is_expected_return else PayoutTrigger.UNMATCHED_TRANSFER,),
        (updated_transfer,),
    )


@dataclass(frozen=True, slots=True)
class MoneyMovement:
    """One change of who owns money: its posting and its wallet instruction. `kind` and `source_id`
    are the key of both.
    """

    kind: PostingKind
    source_id: str
    lines: tuple[JournalLine, ...]
    seller_change: int
    """Minor units: a wallet debit below 0, a credit above 0; 0: not the seller's money. An EXACT
    transfer is debited by capturing the hold.
    """


REQUESTED_MATCHES = frozenset({TransferMatch.EXACT, TransferMatch.AFTER_FAILURE})
"""Matches of the requested transfer. Each payout has at most one."""


def posting_id(payout_id: str, provider: str, transfer: Transfer) -> str:
    """The id under which a transfer is posted. The requested transfer, in time or late, uses the
    payout id, so wallet and ledger book it once.
    """
    return (
        payout_id
        if transfer.match in REQUESTED_MATCHES
        else f"t-{digest_text(provider, transfer.reference)}"
    )


def money_movements(
    payout_id: str, provider: str, seller: str, amount: int, fee: int, transfer: Transfer
) -> tuple[MoneyMovement, ...]:
    """The postings for a transfer, and for its return if there is one. `amount` and `fee` are the
    payout's. Posting is idempotent by the keys.
    """
    is_requested = transfer.match in REQUESTED_MATCHES
    source_id = posting_id(payout_id, provider, transfer)
    if transfer.match is TransferMatch.CURRENCY_MISMATCH:
        movement = MoneyMovement(
            PostingKind.UNAPPLIED,
            source_id,
            unapplied_payout_lines(provider, transfer.currency, transfer.amount),
            0,
        )
    elif is_requested:
        movement = MoneyMovement(
            PostingKind.PAYOUT,
            source_id,
            payout_lines(provider, seller, transfer.currency, amount, fee),
            -amount,
        )
    else:
        movement = MoneyMovement(
            PostingKind.PAYOUT,
            source_id,
            payout_lines(provider, seller, transfer.currency, transfer.amount, 0),
            -transfer.amount,
        )
    returned_amount = transfer.returned_amount
    if returned_amount is None:
        return (movement,)
    if transfer.has_valid_return and transfer.match is not TransferMatch.CURRENCY_MISMATCH:
        return (
            movement,
            MoneyMovement(
                PostingKind.PAYOUT_RETURN,
                source_id,
                payout_return_lines(provider, seller, transfer.currency, returned_amount),
                returned_amount,
            ),
        )
    return (
        movement,
        MoneyMovement(
            PostingKind.PAYOUT_RETURN,
            source_id,
            unapplied_payout_lines(provider, transfer.returned_currency, -returned_amount),
            0,
        ),
    )
