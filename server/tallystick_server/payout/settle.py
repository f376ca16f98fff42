"""Settle: end the hold of a payout that came to rest, and post every transfer that was made for it, in wallet and ledger.

Each step may be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tallystick.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tallystick.wallet.v1 import wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.money import format_amount
from tallystick_core.payout import CAPTURED, WATCHED, Cause, Happening, payout_hold_id
from tallystick_core.provider import Trouble
from tallystick_core.refusal import Reason, Refused
from tallystick_core.transfer import Fact, Fit, Transfer, facts
from tallystick_server.payout.move import Move, move_payouts
from tallystick_server.payout.payout import Payout
from tallystick_server.payout.standing import Turn, transfer_of
from tallystick_server.runtime.flow import SettlingRefused
from tallystick_server.runtime.items import refusals
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.postings import add_posting
from tallystick_server.runtime.retry import Policies
from tallystick_server.runtime.stage import by_halves
from tallystick_server.runtime.wire import MOST_ITEMS
from tallystick_storage.database import Database
from tallystick_storage.payout import transfer as transfers

_Fact = tuple[Payout, Fact]


class Settle:
    """The settle stage's work. A payout is settled only where wallet and ledger have both answered, and nothing more became known meanwhile."""

    def __init__(self, database: Database, peers: Peers, wallet_address: str, ledger_address: str, policies: Policies) -> None:
        self._database = database
        self._peers = peers
        self._wallet: Any = peers.stub(wallet_service_pb2_grpc.WalletServiceStub, wallet_address)
        self._ledger: Any = peers.stub(ledger_service_pb2_grpc.LedgerServiceStub, ledger_address)
        self._policies = policies

    async def run(self, items: Sequence[Payout]) -> Sequence[Payout | Exception]:
        """Each payout as it stands after it, or SettlingRefused. Raises DEPENDENCY_UNAVAILABLE for all of them."""
        return await by_halves(self._settle, items)

    async def _settle(self, items: Sequence[Payout]) -> Sequence[Payout | Exception]:
        ids = sorted(item.payout_id for item in items)
        told = await self._database.load(lambda connection: transfers.of(connection, ids))
        by_hold, otherwise = _facts(items, {id_: [transfer_of(row) for row in rows] for id_, rows in told.items()})
        refused: dict[str, SettlingRefused] = {}
        # what was held becomes free before it is taken otherwise, so that less is owed
        await self._each(self._capture, [(item, None) for item in items if item.state in CAPTURED], refused)
        await self._each(self._release, [(item, None) for item in items if item.state not in CAPTURED], refused)
        await self._each(self._debit, [one for one in otherwise if one[1].seller_change < 0], refused)
        await self._each(self._credit, [one for one in otherwise if one[1].seller_change > 0], refused)
        await self._each(self._post, by_hold + otherwise, refused)
        moves = [self._move(item) for item in items if item.payout_id not in refused]

        settled = await self._database.transact(lambda connection: move_payouts(connection, moves)) if moves else {}
        return [refused.get(item.payout_id) or settled.get(item.payout_id) or _moved_meanwhile() for item in items]

    def _move(self, item: Payout) -> Move:
        """What was paid may come back, and what failed after it was sent may have been paid after all, so its provider is asked now and then."""
        told = item.state in WATCHED and item.standing.attempt_count > 0
        watch = self._policies.of(item.provider, Trouble.WATCHED).delay(1, item.demand_id) if told else None
        return Move(item, (Turn(item.standing.after(Happening.SETTLED), Cause.SETTLED),), watch_after=watch)

    async def _each(
        self, call: Callable[[Sequence[tuple[Payout, Any]]], Any], ones: Sequence[tuple[Payout, Any]], refused: dict[str, SettlingRefused]
    ) -> None:
        """Calls for those whose payouts were not refused before, and notes why some are."""
        able = [one for one in ones if one[0].payout_id not in refused]
        for start in range(0, len(able), MOST_ITEMS):
            part = able[start : start + MOST_ITEMS]
            for id_, why in refusals([item.payout_id for item, _ in part], await call(part)).items():
                refused[id_] = SettlingRefused(f"payout {id_}: {why.message}")

    async def _capture(self, holds: Sequence[tuple[Payout, None]]) -> Sequence[Any]:
        captures = [
            wallet_service_pb2.HoldCapture(hold_id=payout_hold_id(item.payout_id), amount=format_amount(item.amount, item.currency))
            for item, _ in holds
        ]
        return list((await self._peers.call(self._wallet.BatchCaptureHold, wallet_service_pb2.BatchCaptureHoldRequest(captures=captures))).results)

    async def _release(self, holds: Sequence[tuple[Payout, None]]) -> Sequence[Any]:
        request = wallet_service_pb2.BatchReleaseHoldRequest(hold_ids=[payout_hold_id(item.payout_id) for item, _ in holds])
        return list((await self._peers.call(self._wallet.BatchReleaseHold, request)).results)

    async def _debit(self, facts_: Sequence[_Fact]) -> Sequence[Any]:
        debits = [wallet_service_pb2.Debit(**_movement(*one), as_fact=True) for one in facts_]
        request = wallet_service_pb2.BatchDebitRequest(debits=debits, outcome_only=True)
        return list((await self._peers.call(self._wallet.BatchDebit, request)).results)

    async def _credit(self, facts_: Sequence[_Fact]) -> Sequence[Any]:
        credits_ = [wallet_service_pb2.Credit(**_movement(*one)) for one in facts_]
        request = wallet_service_pb2.BatchCreditRequest(credits=credits_, outcome_only=True)
        return list((await self._peers.call(self._wallet.BatchCredit, request)).results)

    async def _post(self, facts_: Sequence[_Fact]) -> Sequence[Any]:
        request = ledger_service_pb2.BatchPostRequest(outcome_only=True)
        for item, fact in facts_:
            add_posting(request, fact.kind, fact.cause_id, item.caller, fact.lines)
        return list((await self._peers.call(self._ledger.BatchPost, request)).results)


def _moved_meanwhile() -> Refused:
    return Refused(Reason.CONFLICT, "More became known of it while it was settled.")


def _facts(items: Sequence[Payout], told: Mapping[str, Sequence[Transfer]]) -> tuple[list[_Fact], list[_Fact]]:
    """All money that moved for payouts: what is taken from the wallet by capturing the hold, and the rest."""
    by_hold: list[_Fact] = []
    otherwise: list[_Fact] = []
    for item in items:
        for transfer in told.get(item.payout_id, ()):
            out, *back = facts(item.payout_id, item.provider, item.seller_account, item.amount, item.fee, transfer)
            (by_hold if transfer.fit is Fit.AS_ASKED else otherwise).append((item, out))
            otherwise += [(item, fact) for fact in back]
    return by_hold, otherwise


def _movement(item: Payout, fact: Fact) -> dict[str, Any]:
    return {
        "cause": f"{fact.kind}/{fact.cause_id}",
        "caller": item.caller,
        "seller_account": item.seller_account,
        "amount": format_amount(abs(fact.seller_change), item.currency),
        "currency": item.currency,
    }
