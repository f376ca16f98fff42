"""The RPCs of WalletService."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tallystick.wallet.v1 import wallet_pb2
from tallystick.wallet.v1 import wallet_service_pb2 as pb
from tallystick_core.access import Role
from tallystick_core.errors import ApiError, not_found_error
from tallystick_core.money import parse_amount, parse_currency
from tallystick_core.validation import parse_id, parse_optional_id, parse_reason_text
from tallystick_core.wallet.holds import is_hold_id, parse_hold_id, require_payout_service
from tallystick_core.wallet.instructions import Instruction
from tallystick_core.wallet.seller_ownership import AssignmentState
from tallystick_core.wallet.state import EntryKind
from tallystick_server.observability.tracing import traceparent
from tallystick_server.operations import alerts
from tallystick_server.operations.alerts import AlertHandlers
from tallystick_server.operations.batcher import MAX_QUEUED_BATCHES, Batcher
from tallystick_server.rpc.batch import check_batch, process_items, to_item_status
from tallystick_server.rpc.call import Access, Call
from tallystick_server.rpc.pagination import NEWEST_FIRST, Listing, list_page, parse_page_size
from tallystick_server.rpc.versions import parse_expected_version
from tallystick_server.wallet import convert
from tallystick_server.wallet.apply_instructions import (
    InstructionRequest,
    InstructionResult,
    WalletInstructions,
)
from tallystick_server.wallet.seller_ownership import Sellers
from tallystick_server.wallet.set_policy import WalletPolicies
from tallystick_storage.database import Database
from tallystick_storage.wallet import queries
from tallystick_storage.wallet import wallets as store
from tallystick_storage.wallet.seller_ownership import AssignmentRow

_OPERATOR_OR_SERVICE = frozenset({Role.OPERATOR, Role.SERVICE})
_SERVICE = frozenset({Role.SERVICE})
_OPERATOR = frozenset({Role.OPERATOR})
ACCESS: Access = {
    "GetWallet": _OPERATOR_OR_SERVICE,
    "ListWallets": _OPERATOR_OR_SERVICE,
    "ListWalletEntries": _OPERATOR_OR_SERVICE,
    "ListEntriesOfSources": _SERVICE,
    "BatchCredit": _SERVICE,
    "BatchRelease": _SERVICE,
    "BatchDebit": _SERVICE,
    "BatchPlaceHold": _SERVICE,
    "BatchCaptureHold": _SERVICE,
    "BatchReleaseHold": _SERVICE,
    "GetHold": _OPERATOR_OR_SERVICE,
    "ListHolds": _OPERATOR_OR_SERVICE,
    "SetWalletPolicy": _OPERATOR_OR_SERVICE,
    "BatchClaimSellers": _SERVICE,
    "GetSeller": _OPERATOR_OR_SERVICE,
    "RequestSellerAssignment": _OPERATOR,
    "ApproveSellerAssignment": _OPERATOR,
    "RejectSellerAssignment": _OPERATOR,
    **alerts.ACCESS,
}
_WALLETS = Listing(
    "ListWallets",
    queries.list_wallets,
    (str, str),
    lambda row: (row.seller_account, row.currency),
    convert.wallet,
)
_ENTRIES = Listing(
    "ListWalletEntries", queries.list_entries, (int,), lambda row: (row.number,), convert.entry
)
_HOLDS = Listing(
    "ListHolds",
    queries.list_holds,
    NEWEST_FIRST,
    lambda row: (row.create_time, row.hold_id),
    convert.hold,
)

M = TypeVar("M")


class WalletHandlers(AlertHandlers):
    """Handlers only decode, await and encode.

    `payout_service`: the caller name of PayoutService.
    """

    def __init__(self, database: Database, release_delay_seconds: int, payout_service: str) -> None:
        super().__init__(database)
        self._payout_service = payout_service
        self._policies = WalletPolicies(database, release_delay_seconds)
        self._sellers = Sellers(database)
        self.instruction_batcher: Batcher[
            Sequence[InstructionRequest], Sequence[InstructionResult | Exception]
        ] = Batcher(
            "wallet.change",
            WalletInstructions(database, release_delay_seconds).apply_groups,
            max_batch=4,
            concurrency=2,
            max_linger=0,
            drop_abandoned=True,
            max_queued=MAX_QUEUED_BATCHES,
        )  # the items arrive in batches already

    def start(self) -> None:
        self.instruction_batcher.start()

    async def stop(self) -> None:
        await self.instruction_batcher.stop()

    async def GetWallet(self, request: pb.GetWalletRequest, _call: Call) -> pb.GetWalletResponse:
        return pb.GetWalletResponse(wallet=await self._get_wallet(_parse_key(request)))

    async def ListWallets(
        self, request: pb.ListWalletsRequest, _call: Call
    ) -> pb.ListWalletsResponse:
        seller = parse_optional_id(request.seller_account, "seller_account")
        currency = parse_currency(request.currency) if request.currency else ""
        wallets, next_page_token = await list_page(
            self._database, _WALLETS, request, (seller, currency)
        )
        return pb.ListWalletsResponse(wallets=wallets, next_page_token=next_page_token)

    async def ListWalletEntries(
        self, request: pb.ListWalletEntriesRequest, _call: Call
    ) -> pb.ListWalletEntriesResponse:
        filters = queries.EntryFilter(
            *_parse_key(request), convert.parse_entry_source(request.source_id)
        )
        entries, next_page_token = await list_page(self._database, _ENTRIES, request, filters)
        return pb.ListWalletEntriesResponse(entries=entries, next_page_token=next_page_token)

    async def ListEntriesOfSources(
        self, request: pb.ListEntriesOfSourcesRequest, _call: Call
    ) -> pb.ListEntriesOfSourcesResponse:
        source_ids = convert.parse_entry_sources(request.source_ids)
        limit = parse_page_size(request.page_size)
        rows = await self._database.read(
            lambda connection: queries.list_entries_of_sources(connection, source_ids, limit)
        )
        return pb.ListEntriesOfSourcesResponse(entries=map(convert.entry, rows))

    async def BatchCredit(
        self, request: pb.BatchCreditRequest, _call: Call
    ) -> pb.BatchCreditResponse:
        results = await self._apply_batch(
            request.credits,
            "credits",
            convert.parse_credit,
            include_wallet=not request.outcome_only,
        )
        return pb.BatchCreditResponse(results=[_wallet_result(result) for result in results])

    async def BatchRelease(
        self, request: pb.BatchReleaseRequest, _call: Call
    ) -> pb.BatchReleaseResponse:
        results = await self._apply_batch(
            request.releases,
            "releases",
            convert.parse_release,
            include_wallet=not request.outcome_only,
        )
        return pb.BatchReleaseResponse(results=[_wallet_result(result) for result in results])

    async def BatchDebit(self, request: pb.BatchDebitRequest, _call: Call) -> pb.BatchDebitResponse:
        results = await self._apply_batch(
            request.debits, "debits", convert.parse_debit, include_wallet=not request.outcome_only
        )
        return pb.BatchDebitResponse(results=[_wallet_result(result) for result in results])

    async def BatchPlaceHold(
        self, request: pb.BatchPlaceHoldRequest, call: Call
    ) -> pb.BatchPlaceHoldResponse:
        require_payout_service(
            [hold.hold_id for hold in request.holds],
            call.caller.name,
            self._payout_service,
            "holds[{}].hold_id",
        )
        results = await self._apply_batch(request.holds, "holds", convert.parse_hold)
        return pb.BatchPlaceHoldResponse(results=[_hold_result(result) for result in results])

    async def BatchCaptureHold(
        self, request: pb.BatchCaptureHoldRequest, call: Call
    ) -> pb.BatchCaptureHoldResponse:
        check_batch(request.captures, "captures")
        require_payout_service(
            [capture.hold_id for capture in request.captures],
            call.caller.name,
            self._payout_service,
            "captures[{}].hold_id",
        )
        ids = sorted(
            {capture.hold_id for capture in request.captures if is_hold_id(capture.hold_id)}
        )
        holds = await self._database.load(lambda connection: store.find_holds(connection, ids))

        def parse(capture: pb.HoldCapture) -> Instruction:
            hold_id = parse_hold_id(capture.hold_id)
            if hold_id not in holds:
                raise not_found_error("hold", hold_id, "hold_id")
            amount = parse_amount(capture.amount, holds[hold_id].currency)  # in the hold's currency
            return Instruction(EntryKind.HOLD_CAPTURED, hold_id, call.caller.name, amount=amount)

        results = await self._apply_batch(request.captures, "captures", parse)
        return pb.BatchCaptureHoldResponse(results=[_hold_result(result) for result in results])

    async def BatchReleaseHold(
        self, request: pb.BatchReleaseHoldRequest, call: Call
    ) -> pb.BatchReleaseHoldResponse:
        require_payout_service(
            request.hold_ids, call.caller.name, self._payout_service, "hold_ids[{}]"
        )

        def parse(hold_id: str) -> Instruction:
            return Instruction(EntryKind.HOLD_RELEASED, parse_hold_id(hold_id), call.caller.name)

        results = await self._apply_batch(request.hold_ids, "hold_ids", parse)
        return pb.BatchReleaseHoldResponse(results=[_hold_result(result) for result in results])

    async def GetHold(self, request: pb.GetHoldRequest, _call: Call) -> pb.GetHoldResponse:
        hold_id = parse_hold_id(request.hold_id)
        holds = await self._database.read(
            lambda connection: store.find_holds(connection, [hold_id])
        )
        if hold_id not in holds:
            raise not_found_error("hold", hold_id)
        return pb.GetHoldResponse(hold=convert.hold(holds[hold_id]))

    async def ListHolds(self, request: pb.ListHoldsRequest, _call: Call) -> pb.ListHoldsResponse:
        seller = parse_id(request.seller_account, "seller_account")
        currency = parse_currency(request.currency) if request.currency else ""
        holds, next_page_token = await list_page(
            self._database, _HOLDS, request, (seller, currency)
        )
        return pb.ListHoldsResponse(holds=holds, next_page_token=next_page_token)

    async def SetWalletPolicy(
        self, request: pb.SetWalletPolicyRequest, call: Call
    ) -> pb.SetWalletPolicyResponse:
        key = _parse_key(request)
        frozen, release_delay_seconds = convert.parse_policy(request)
        expected = parse_expected_version(request)
        changed = await self._policies.set(
            key,
            frozen=frozen,
            release_delay_seconds=release_delay_seconds,
            expected_version=expected,
            caller=call.caller.name,
            traceparent=traceparent(),
        )
        if not changed:
            call.mark_replayed()
        return pb.SetWalletPolicyResponse(wallet=await self._get_wallet(key, changed=True))

    async def BatchClaimSellers(
        self, request: pb.BatchClaimSellersRequest, call: Call
    ) -> pb.BatchClaimSellersResponse:
        check_batch(request.claims, "claims")
        claims = []
        for index, claim in enumerate(request.claims):
            try:
                claims.append(convert.parse_claim(claim))
            except ApiError as error:
                raise error.with_field_prefix(f"claims[{index}]") from None
        rows = await self._sellers.claim(claims, call.caller.name, traceparent())
        return pb.BatchClaimSellersResponse(sellers=[convert.seller(row) for row in rows])

    async def GetSeller(self, request: pb.GetSellerRequest, _call: Call) -> pb.GetSellerResponse:
        row, assignments = await self._sellers.get(
            parse_id(request.seller_account, "seller_account")
        )
        return pb.GetSellerResponse(
            seller=None if row is None else convert.seller(row),
            assignments=[convert.assignment(assignment) for assignment in assignments],
        )

    async def RequestSellerAssignment(
        self, request: pb.RequestSellerAssignmentRequest, call: Call
    ) -> pb.RequestSellerAssignmentResponse:
        row, replayed = await self._sellers.request(
            convert.parse_assignment(request, call.caller.name), traceparent()
        )
        if replayed:
            call.mark_replayed()
        return pb.RequestSellerAssignmentResponse(seller_assignment=convert.assignment(row))

    async def ApproveSellerAssignment(
        self, request: pb.ApproveSellerAssignmentRequest, call: Call
    ) -> pb.ApproveSellerAssignmentResponse:
        row = await self._decide(request, AssignmentState.APPROVED, call)
        return pb.ApproveSellerAssignmentResponse(seller_assignment=convert.assignment(row))

    async def RejectSellerAssignment(
        self, request: pb.RejectSellerAssignmentRequest, call: Call
    ) -> pb.RejectSellerAssignmentResponse:
        row = await self._decide(request, AssignmentState.REJECTED, call)
        return pb.RejectSellerAssignmentResponse(seller_assignment=convert.assignment(row))

    async def _decide(
        self,
        request: pb.ApproveSellerAssignmentRequest | pb.RejectSellerAssignmentRequest,
        decision: AssignmentState,
        call: Call,
    ) -> AssignmentRow:
        """Returns the assignment after a decision."""
        assignment_id, reason = (
            parse_id(request.seller_assignment_id, "seller_assignment_id"),
            parse_reason_text(request.reason, "reason"),
        )
        row, replayed = await self._sellers.decide(
            assignment_id, decision, call.caller.name, reason, traceparent()
        )
        if replayed:
            call.mark_replayed()
        return row

    async def _get_wallet(
        self, key: store.WalletKey, *, changed: bool = False
    ) -> wallet_pb2.Wallet:
        """Returns the wallet; `changed` as in `Database.read`. Raises NOT_FOUND."""
        wallets = await self._database.read(
            lambda connection: queries.find_wallets(connection, [key]), changed=changed
        )
        if key not in wallets:
            raise not_found_error("wallet", f"of seller {key[0]} in {key[1]}")
        return convert.wallet(wallets[key])

    async def _apply_batch(
        self,
        items: Sequence[M],
        field: str,
        parse: Callable[[M], Instruction],
        *,
        include_wallet: bool = True,
    ) -> list[InstructionResult | Exception]:
        """Returns one result for each item, in order, with its wallet if `include_wallet` is true.

        An item that cannot be parsed is rejected on its own.
        """
        trace_context = traceparent()
        return await process_items(
            items,
            field,
            lambda item: InstructionRequest(parse(item), trace_context, include_wallet),
            self.instruction_batcher.submit,
        )


def _parse_key(
    request: pb.GetWalletRequest | pb.ListWalletEntriesRequest | pb.SetWalletPolicyRequest,
) -> store.WalletKey:
    return parse_id(request.seller_account, "seller_account"), parse_currency(request.currency)


def _wallet_result(result: InstructionResult | Exception) -> pb.WalletResult:
    if isinstance(result, Exception):
        return pb.WalletResult(error=to_item_status(result))
    return pb.WalletResult(
        wallet=convert.wallet(result.wallet) if result.wallet else None, replayed=result.replayed
    )


def _hold_result(result: InstructionResult | Exception) -> pb.HoldResult:
    if isinstance(result, Exception):
        return pb.HoldResult(error=to_item_status(result))
    return pb.HoldResult(
        hold=convert.hold(result.hold) if result.hold else None, replayed=result.replayed
    )
