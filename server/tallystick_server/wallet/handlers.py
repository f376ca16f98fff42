"""The RPCs of WalletService."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tallystick.wallet.v1 import wallet_service_pb2 as pb
from tallystick_core.caller import Role
from tallystick_core.identifier import parse_id, parse_words
from tallystick_core.money import parse_amount, parse_currency
from tallystick_core.refusal import Refused, not_found
from tallystick_core.seller import AssignmentState
from tallystick_core.wallet import EntryKind, Instruction, is_hold_id, parse_hold_id, require_payout_service
from tallystick_server.runtime import alerts
from tallystick_server.runtime.alerts import AlertHandlers
from tallystick_server.runtime.door import Access, Call
from tallystick_server.runtime.fields import PageToken, expected_version, page_size
from tallystick_server.runtime.items import check_batch, each, refusal
from tallystick_server.runtime.stage import BATCHES_WAITING, Stage
from tallystick_server.runtime.telemetry import traceparent
from tallystick_server.wallet import messages
from tallystick_server.wallet.change import Asked, Changed, ChangeWallets
from tallystick_server.wallet.policy import Policies
from tallystick_server.wallet.sellers import Sellers
from tallystick_storage import wallet as store
from tallystick_storage.database import Database

_BOTH = frozenset({Role.OPERATOR, Role.SERVICE})
_SERVICE = frozenset({Role.SERVICE})
_OPERATOR = frozenset({Role.OPERATOR})
ACCESS: Access = {
    "GetWallet": _BOTH,
    "ListWallets": _BOTH,
    "ListWalletEntries": _BOTH,
    "BatchCredit": _SERVICE,
    "BatchRelease": _SERVICE,
    "BatchDebit": _SERVICE,
    "BatchPlaceHold": _SERVICE,
    "BatchCaptureHold": _SERVICE,
    "BatchReleaseHold": _SERVICE,
    "GetHold": _BOTH,
    "ListHolds": _BOTH,
    "SetWalletPolicy": _BOTH,
    "BatchClaimSellers": _SERVICE,
    "GetSeller": _BOTH,
    "RequestSellerAssignment": _OPERATOR,
    "ApproveSellerAssignment": _OPERATOR,
    "RejectSellerAssignment": _OPERATOR,
    **alerts.ACCESS,
}
_LAST = 2**62

M = TypeVar("M")


class WalletHandlers(AlertHandlers):
    """Handlers only decode, await and encode. `payout_service`: the caller that PayoutService is."""

    def __init__(self, database: Database, release_delay: int, payout_service: str) -> None:
        super().__init__(database, pb)
        self._payout_service = payout_service
        self._policies = Policies(database, release_delay)
        self._sellers = Sellers(database)
        self.change: Stage[Sequence[Asked], Sequence[Changed | Exception]] = Stage(
            "wallet.change",
            ChangeWallets(database, release_delay).run,
            most=4,
            lanes=2,
            longest_rest=0,
            for_callers=True,
            max_waiting=BATCHES_WAITING,
        )  # what comes is batches already

    def start(self) -> None:
        self.change.start()

    async def stop(self) -> None:
        await self.change.stop()

    async def GetWallet(self, request: pb.GetWalletRequest, _call: Call) -> pb.GetWalletResponse:
        return pb.GetWalletResponse(wallet=await self._wallet(_key(request)))

    async def ListWallets(self, request: pb.ListWalletsRequest, _call: Call) -> pb.ListWalletsResponse:
        size = page_size(request.page_size)
        seller = parse_id(request.seller_account, "seller_account") if request.seller_account else ""
        currency = parse_currency(request.currency) if request.currency else ""
        token = PageToken("ListWallets", seller, currency)
        place = token.parse(request.page_token, str, str)
        after = (str(place[0]), str(place[1])) if place else ("", "")
        rows = await self._database.read(lambda connection: store.list_wallets(connection, seller, currency, after, size + 1))
        wallets, following = token.page(rows, size, messages.wallet, lambda row: (row.seller_account, row.currency))
        return pb.ListWalletsResponse(wallets=wallets, next_page_token=following)

    async def ListWalletEntries(self, request: pb.ListWalletEntriesRequest, _call: Call) -> pb.ListWalletEntriesResponse:
        size = page_size(request.page_size)
        key = _key(request)
        token = PageToken("ListWalletEntries", *key)
        place = token.parse(request.page_token, int)
        rows = await self._database.read(lambda connection: store.list_entries(connection, key, int(place[0]) if place else _LAST, size + 1))
        entries, following = token.page(rows, size, messages.entry, lambda row: (row.number,))
        return pb.ListWalletEntriesResponse(entries=entries, next_page_token=following)

    async def BatchCredit(self, request: pb.BatchCreditRequest, _call: Call) -> pb.BatchCreditResponse:
        results = await self._batch(request.credits, "credits", messages.parse_credit, shown=not request.outcome_only)
        return pb.BatchCreditResponse(results=[_wallet_result(result) for result in results])

    async def BatchRelease(self, request: pb.BatchReleaseRequest, _call: Call) -> pb.BatchReleaseResponse:
        results = await self._batch(request.releases, "releases", messages.parse_release, shown=not request.outcome_only)
        return pb.BatchReleaseResponse(results=[_wallet_result(result) for result in results])

    async def BatchDebit(self, request: pb.BatchDebitRequest, _call: Call) -> pb.BatchDebitResponse:
        results = await self._batch(request.debits, "debits", messages.parse_debit, shown=not request.outcome_only)
        return pb.BatchDebitResponse(results=[_wallet_result(result) for result in results])

    async def BatchPlaceHold(self, request: pb.BatchPlaceHoldRequest, call: Call) -> pb.BatchPlaceHoldResponse:
        require_payout_service([hold.hold_id for hold in request.holds], call.caller.name, self._payout_service, "holds[{}].hold_id")
        results = await self._batch(request.holds, "holds", messages.parse_hold)
        return pb.BatchPlaceHoldResponse(results=[_hold_result(result) for result in results])

    async def BatchCaptureHold(self, request: pb.BatchCaptureHoldRequest, call: Call) -> pb.BatchCaptureHoldResponse:
        check_batch(request.captures, "captures")
        require_payout_service([capture.hold_id for capture in request.captures], call.caller.name, self._payout_service, "captures[{}].hold_id")
        ids = sorted({capture.hold_id for capture in request.captures if is_hold_id(capture.hold_id)})
        known = await self._database.load(lambda connection: store.holds(connection, ids))

        def parse(capture: pb.HoldCapture) -> Instruction:
            hold_id = parse_hold_id(capture.hold_id)
            if hold_id not in known:
                raise not_found("hold", hold_id, "hold_id")
            amount = parse_amount(capture.amount, known[hold_id].currency)  # in the hold's currency
            return Instruction(EntryKind.HOLD_CAPTURED, hold_id, call.caller.name, amount=amount)

        results = await self._batch(request.captures, "captures", parse)
        return pb.BatchCaptureHoldResponse(results=[_hold_result(result) for result in results])

    async def BatchReleaseHold(self, request: pb.BatchReleaseHoldRequest, call: Call) -> pb.BatchReleaseHoldResponse:
        require_payout_service(request.hold_ids, call.caller.name, self._payout_service, "hold_ids[{}]")

        def parse(hold_id: str) -> Instruction:
            return Instruction(EntryKind.HOLD_RELEASED, parse_hold_id(hold_id), call.caller.name)

        results = await self._batch(request.hold_ids, "hold_ids", parse)
        return pb.BatchReleaseHoldResponse(results=[_hold_result(result) for result in results])

    async def GetHold(self, request: pb.GetHoldRequest, _call: Call) -> pb.GetHoldResponse:
        hold_id = parse_hold_id(request.hold_id)
        found = await self._database.read(lambda connection: store.holds(connection, [hold_id]))
        if hold_id not in found:
            raise not_found("hold", hold_id)
        return pb.GetHoldResponse(hold=messages.hold(found[hold_id]))

    async def ListHolds(self, request: pb.ListHoldsRequest, _call: Call) -> pb.ListHoldsResponse:
        size = page_size(request.page_size)
        seller = parse_id(request.seller_account, "seller_account")
        currency = parse_currency(request.currency) if request.currency else ""
        token = PageToken("ListHolds", seller, currency)
        before = token.before(request.page_token)
        rows = await self._database.read(lambda connection: store.list_holds(connection, seller, currency, before, size + 1))
        holds, following = token.page(rows, size, messages.hold, lambda row: (row.create_time.isoformat(), row.hold_id))
        return pb.ListHoldsResponse(holds=holds, next_page_token=following)

    async def SetWalletPolicy(self, request: pb.SetWalletPolicyRequest, call: Call) -> pb.SetWalletPolicyResponse:
        key = _key(request)
        frozen, delay = messages.parse_policy(request)
        expected = expected_version(request)
        changed = await self._policies.set(
            key, frozen=frozen, release_delay=delay, expected_version=expected, caller=call.caller.name, traceparent=traceparent()
        )
        if not changed:
            call.replayed()
        return pb.SetWalletPolicyResponse(wallet=await self._wallet(key, changed=True))

    async def BatchClaimSellers(self, request: pb.BatchClaimSellersRequest, call: Call) -> pb.BatchClaimSellersResponse:
        check_batch(request.claims, "claims")
        claims = []
        for index, claim in enumerate(request.claims):
            try:
                claims.append(messages.parse_claim(claim))
            except Refused as refused:
                raise refused.below(f"claims[{index}]") from None
        rows = await self._sellers.claim(claims, call.caller.name, traceparent())
        return pb.BatchClaimSellersResponse(sellers=[messages.seller(row) for row in rows])

    async def GetSeller(self, request: pb.GetSellerRequest, _call: Call) -> pb.GetSellerResponse:
        row, assignments = await self._sellers.get(parse_id(request.seller_account, "seller_account"))
        return pb.GetSellerResponse(
            seller=None if row is None else messages.seller(row), assignments=[messages.assignment(one) for one in assignments]
        )

    async def RequestSellerAssignment(self, request: pb.RequestSellerAssignmentRequest, call: Call) -> pb.RequestSellerAssignmentResponse:
        row, replayed = await self._sellers.request(messages.parse_assignment(request, call.caller.name), traceparent())
        if replayed:
            call.replayed()
        return pb.RequestSellerAssignmentResponse(seller_assignment=messages.assignment(row))

    async def ApproveSellerAssignment(self, request: pb.ApproveSellerAssignmentRequest, call: Call) -> pb.ApproveSellerAssignmentResponse:
        row = await self._decided(request, AssignmentState.APPROVED, call)
        return pb.ApproveSellerAssignmentResponse(seller_assignment=messages.assignment(row))

    async def RejectSellerAssignment(self, request: pb.RejectSellerAssignmentRequest, call: Call) -> pb.RejectSellerAssignmentResponse:
        row = await self._decided(request, AssignmentState.REJECTED, call)
        return pb.RejectSellerAssignmentResponse(seller_assignment=messages.assignment(row))

    async def _decided(
        self, request: pb.ApproveSellerAssignmentRequest | pb.RejectSellerAssignmentRequest, decision: AssignmentState, call: Call
    ) -> Any:
        """The assignment after a decision."""
        assignment_id, reason = parse_id(request.seller_assignment_id, "seller_assignment_id"), parse_words(request.reason, "reason")
        row, replayed = await self._sellers.decide(assignment_id, decision, call.caller.name, reason, traceparent())
        if replayed:
            call.replayed()
        return row

    async def _wallet(self, key: store.WalletKey, *, changed: bool = False) -> Any:
        """The wallet; `changed` as in `Database.read`. Raises NOT_FOUND."""
        found = await self._database.read(lambda connection: store.wallets(connection, [key]), changed=changed)
        if key not in found:
            raise not_found("wallet", f"of seller {key[0]} in {key[1]}")
        return messages.wallet(found[key])

    async def _batch(self, items: Sequence[M], field: str, parse: Callable[[M], Instruction], *, shown: bool = True) -> list[Changed | Exception]:
        """One result for each item, in order, with its wallet if that is `shown`; those that cannot be parsed are refused on their own."""
        trace = traceparent()
        return await each(items, field, lambda item: Asked(parse(item), trace, shown), self.change.submit)


def _key(request: pb.GetWalletRequest | pb.ListWalletEntriesRequest | pb.SetWalletPolicyRequest) -> store.WalletKey:
    return parse_id(request.seller_account, "seller_account"), parse_currency(request.currency)


def _wallet_result(result: Changed | Exception) -> pb.WalletResult:
    if isinstance(result, Exception):
        return pb.WalletResult(error=refusal(result))
    return pb.WalletResult(wallet=messages.wallet(result.wallet) if result.wallet else None, replayed=result.replayed)


def _hold_result(result: Changed | Exception) -> pb.HoldResult:
    if isinstance(result, Exception):
        return pb.HoldResult(error=refusal(result))
    return pb.HoldResult(hold=messages.hold(result.hold) if result.hold else None, replayed=result.replayed)
