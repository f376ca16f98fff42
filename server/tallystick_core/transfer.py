"""What a payout provider's answers mean: moves of the payout, and money that moved. Money that moved always counts, and counts once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tallystick_core.booking import Kind, Line, payout, payout_return, unapplied_payout
from tallystick_core.canonical import letters
from tallystick_core.payout import AT_REST, CAPTURED, HAPPENINGS, MAYBE_SENT, VERBS, Happening, PayoutState, move
from tallystick_core.provider import Declined, PayoutFailure, PayoutOutcome, Returned, Succeeded
from tallystick_core.table import forbidden


class Fit(StrEnum):
    """How a transfer that a provider tells of fits its payout; the same names as `tallystick.payout.v1.TransferFit`."""

    AS_ASKED = "AS_ASKED"
    LATE = "LATE"
    MISMATCH = "MISMATCH"
    TWICE = "TWICE"
    OTHER_CURRENCY = "OTHER_CURRENCY"


@dataclass(frozen=True, slots=True)
class Transfer:
    """Money that a provider says it paid for a payout, in minor units, and what came back of it; `returned_amount` None: nothing did."""

    reference: str
    amount: int
    currency: str
    fit: Fit
    returned_amount: int | None = None
    returned_currency: str = ""

    @property
    def return_fits(self) -> bool:
        """Whether what came back is the whole or a part of what went out."""
        return self.returned_amount is not None and self.returned_currency == self.currency and self.returned_amount <= self.amount

    @property
    def matches(self) -> bool:
        """Whether it was paid as asked, and nothing came back but the whole or a part of it. Otherwise an operator has to know."""
        return self.fit is Fit.AS_ASKED and (self.returned_amount is None or self.return_fits)


@dataclass(frozen=True, slots=True)
class Known:
    """What is on disk about a payout when an answer is judged. `net` is what the provider was asked to pay; transfers by reference."""

    state: PayoutState
    net: int
    currency: str
    transfers: Mapping[str, Transfer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer does: moves in order, each a version of its own, and the transfers that are new or have changed."""

    happenings: tuple[Happening, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    failure: PayoutFailure | None = None
    """Why, where it fails."""
    contradicted: bool = False
    """The provider tells otherwise than before, which is for a person: that a paid payout failed, where only a return gives its money back,
    or another amount of a transfer that is known."""


def judge(known: Known, outcome: PayoutOutcome) -> Verdict:
    """What an answer means for a payout, whenever and however often it comes; told again it does nothing. Money that moved always counts.

    Raises STATE_FORBIDS for a payout that was never sent.
    """
    if known.state not in MAYBE_SENT:
        raise forbidden("payout", known.state, VERBS[HAPPENINGS[type(outcome)]])  # it was never sent
    match outcome:
        case Succeeded():
            return _paid(known, outcome)
        case Returned():
            return _came_back(known, outcome)
        case Declined() if known.state is PayoutState.PAID:
            return Verdict(contradicted=True)
        case _ if known.state in AT_REST:
            return Verdict()
        case Declined():
            return Verdict((Happening.DECLINED,), failure=_failure(outcome))
        case _:
            return Verdict((HAPPENINGS[type(outcome)],))


def _failure(declined: Declined) -> PayoutFailure:
    """A reason that payouts do not have is told by its code alone."""
    return declined.reason if isinstance(declined.reason, PayoutFailure) else PayoutFailure.PROVIDER_DECLINED


def _paid(known: Known, told: Succeeded) -> Verdict:
    before = known.transfers.get(told.reference)
    if before is not None:
        return Verdict(contradicted=(told.amount, told.currency) != (before.amount, before.currency))
    transfer = Transfer(told.reference, told.amount, told.currency, _fit(known, told))
    if known.state in AT_REST:
        return Verdict((Happening.STRAY,), (transfer,))
    if transfer.fit is Fit.AS_ASKED:
        return Verdict((Happening.SUCCEEDED,), (transfer,))
    return Verdict((Happening.DECLINED,), (transfer,), PayoutFailure.PROVIDER_MISMATCH)


def _fit(known: Known, told: Succeeded) -> Fit:
    if told.currency != known.currency:
        return Fit.OTHER_CURRENCY
    if known.transfers or known.state in CAPTURED:
        return Fit.TWICE
    if told.amount != known.net:
        return Fit.MISMATCH
    return Fit.LATE if known.state is PayoutState.FAILED else Fit.AS_ASKED


def _came_back(known: Known, told: Returned) -> Verdict:
    transfer = known.transfers.get(told.reference)
    if transfer is None:  # that it was paid has not been told, but follows
        paid = _paid(known, Succeeded(told.reference, known.net, known.currency))
        state = move(known.state, paid.happenings[0])
        back = _came_back(replace(known, state=state, transfers={**known.transfers, told.reference: paid.transfers[0]}), told)
        return replace(back, happenings=paid.happenings + back.happenings)
    if transfer.returned_amount is not None:
        return Verdict(contradicted=(told.amount, told.currency) != (transfer.returned_amount, transfer.returned_currency))
    returned = replace(transfer, returned_amount=told.amount, returned_currency=told.currency)
    moves = transfer.fit is Fit.AS_ASKED and returned.return_fits
    return Verdict((Happening.RETURNED if moves else Happening.STRAY,), (returned,))


@dataclass(frozen=True, slots=True)
class Fact:
    """What the ledger is told of money that moved, and the wallet with it: `kind` and `cause_id` are the key in both."""

    kind: Kind
    cause_id: str
    lines: tuple[Line, ...]
    seller_change: int
    """Minor units: the wallet's debit below 0, its credit above; 0: it is not the seller's. A transfer AS_ASKED is debited by capturing the hold."""


ASKED = frozenset({Fit.AS_ASKED, Fit.LATE})
"""It is what was asked for, of which there is at most one for each payout."""


def cause_of(payout_id: str, provider: str, transfer: Transfer) -> str:
    """The id under which a transfer is posted: the payout's for what was asked for, in time or late, so that wallet and ledger too take it once."""
    return payout_id if transfer.fit in ASKED else f"t-{letters(provider, transfer.reference)}"


def facts(payout_id: str, provider: str, seller: str, amount: int, fee: int, transfer: Transfer) -> tuple[Fact, ...]:
    """What is posted for a transfer, and for its return if it came back; `amount` and `fee` are the payout's. Posting is idempotent by the keys."""
    asked = transfer.fit in ASKED
    cause_id = cause_of(payout_id, provider, transfer)
    if transfer.fit is Fit.OTHER_CURRENCY:
        out = Fact(Kind.UNAPPLIED, cause_id, unapplied_payout(provider, transfer.currency, transfer.amount), 0)
    elif asked:
        out = Fact(Kind.PAYOUT, cause_id, payout(provider, seller, transfer.currency, amount, fee), -amount)
    else:
        out = Fact(Kind.PAYOUT, cause_id, payout(provider, seller, transfer.currency, transfer.amount, 0), -transfer.amount)
    back = transfer.returned_amount
    if back is None:
        return (out,)
    if transfer.return_fits and transfer.fit is not Fit.OTHER_CURRENCY:
        return (out, Fact(Kind.PAYOUT_RETURN, cause_id, payout_return(provider, seller, transfer.currency, back), back))
    return (out, Fact(Kind.PAYOUT_RETURN, cause_id, unapplied_payout(provider, transfer.returned_currency, -back), 0))
