"""Prepare: hold the money of a payout in the seller's wallet, and begin its attempt, unless a second person has to approve it first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.money import format_amount
from tallystick_core.payable import ENDED, DestinationState
from tallystick_core.payout import UNSENT, Cause, Happening, PayoutState, hold_failure, needs_approval, payout_hold_id
from tallystick_core.provider import PayoutFailure
from tallystick_core.refusal import Refused
from tallystick_server.payout.move import Move, move_payouts
from tallystick_server.payout.payout import Payout
from tallystick_server.payout.standing import Turn
from tallystick_server.runtime.flow import SettlingRefused
from tallystick_server.runtime.items import refusals
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.stage import by_halves
from tallystick_storage.database import Database
from tallystick_storage.payout import destination as destinations


class Prepare:
    """The prepare stage's work. `thresholds`: by currency, the amount above which a payout needs a second person, in minor units."""

    def __init__(self, database: Database, peers: Peers, wallet_address: str, thresholds: Mapping[str, int]) -> None:
        self._database = database
        self._peers = peers
        self._wallet: Any = peers.stub(wallet_service_pb2_grpc.WalletServiceStub, wallet_address)
        self._thresholds = thresholds

    async def run(self, items: Sequence[Payout]) -> Sequence[Payout | Exception]:
        """Each payout as it stands after it, or SettlingRefused. Raises DEPENDENCY_UNAVAILABLE for all of them."""
        return await by_halves(self._prepare, items)

    async def _prepare(self, items: Sequence[Payout]) -> Sequence[Payout | Exception]:
        refusals = await self._hold([item for item in items if item.state is PayoutState.CREATED])
        failures = {payout_id: hold_failure(refused.reason) for payout_id, refused in refusals.items()}
        ours = {id_: SettlingRefused(f"the hold of {id_}: {refusals[id_].message}") for id_, failure in failures.items() if failure is None}
        able = [item for item in items if item.payout_id not in ours]

        def prepare(connection: Connection) -> dict[str, Payout]:
            states = destinations.states(connection, sorted({item.payout_destination_id for item in able}))
            moves = [prepared(item, failures.get(item.payout_id), states[item.payout_destination_id], self._thresholds) for item in able]
            return move_payouts(connection, moves)

        moved = await self._database.transact(prepare) if able else {}
        return [ours.get(item.payout_id) or moved.get(item.payout_id, item) for item in items]

    async def _hold(self, items: Sequence[Payout]) -> dict[str, Refused]:
        """Places the holds; what the wallet refused, by payout id."""
        if not items:
            return {}
        holds = [
            wallet_service_pb2.NewHold(
                hold_id=payout_hold_id(item.payout_id),
                caller=item.caller,
                seller_account=item.seller_account,
                amount=format_amount(item.amount, item.currency),
                currency=item.currency,
                purpose=wallet_pb2.HOLD_PURPOSE_PAYOUT,
                keep_available=format_amount(item.reserve, item.currency),
            )
            for item in items
        ]
        answer = await self._peers.call(self._wallet.BatchPlaceHold, wallet_service_pb2.BatchPlaceHoldRequest(holds=holds))
        return refusals([item.payout_id for item in items], answer.results)


def prepared(item: Payout, failure: PayoutFailure | None, destination: DestinationState, thresholds: Mapping[str, int]) -> Move:
    """What becomes of a payout that is CREATED, with the wallet's verdict, or READY: an attempt, committed before it is sent, if its way is free."""
    turns: list[Turn] = []
    standing = item.standing
    if standing.state is PayoutState.CREATED:
        turns.append(_held(item, failure, thresholds))
        standing = turns[-1].standing
    if standing.state in UNSENT and destination in ENDED:  # it can be paid nowhere any more
        turns.append(Turn(standing.after(Happening.DESTINATION_ENDED), Cause.DESTINATION_ENDED))
    elif standing.state is PayoutState.READY:
        turns.append(Turn(standing.after(Happening.SENDING, attempt_count=standing.attempt_count + 1), Cause.SENDING))
    return Move(item, tuple(turns), waits=turns[-1].standing.state is PayoutState.AWAITING_APPROVAL)


def _held(item: Payout, failure: PayoutFailure | None, thresholds: Mapping[str, int]) -> Turn:
    """What the wallet's verdict makes of a payout."""
    if failure is not None:
        return Turn(item.standing.after(Happening.HOLD_REFUSED, failure_reason=failure), Cause.HOLD_REFUSED)
    approval = needs_approval(item.amount, item.currency, thresholds)
    return Turn(item.standing.after(Happening.HELD_FOR_APPROVAL if approval else Happening.FUNDS_HELD), Cause.FUNDS_HELD)
