"""The calls behind the commands of reconciliation. Prints nothing."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

from tallystick import Client, NotFoundError
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.reconciliation.accounts import is_bank, is_statement_account
from tallystick_core.reconciliation.breaks import BreakClass, BreakKind, Resolution
from tallystick_server.cli.operator.break_options import BreakSelection
from tallystick_server.rpc.enums import EnumNames

_STATES = EnumNames(reconciliation_pb2.BreakState.DESCRIPTOR)
_CLASSES = EnumNames(reconciliation_pb2.BreakClass.DESCRIPTOR)
_KINDS = EnumNames(reconciliation_pb2.BreakKind.DESCRIPTOR)
_RESOLUTIONS = EnumNames(reconciliation_pb2.Resolution.DESCRIPTOR)
_PAGE_SIZE = 200


class ReconciliationCalls:
    """Each method is one command, or a part of one."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def has_account(self, account: str) -> bool:
        """Whether files can be about an account. That of a bank appears with its first file."""
        return is_bank(account) or account in self._ledger_accounts(account)

    def statement_accounts(self) -> Sequence[str]:
        """The accounts of the ledger that files can be about: first those of providers."""
        paths = [*sorted(self._ledger_accounts("psp/")), *sorted(self._ledger_accounts("banks/"))]
        return [path for path in paths if is_statement_account(path)]

    def _ledger_accounts(self, prefix: str) -> set[str]:
        request = ledger_service_pb2.ListAccountsRequest(prefix=prefix, page_size=_PAGE_SIZE)
        accounts = self._client.pages(self._client.ledger.ListAccounts, request, "accounts")
        return {account.account for account in accounts}

    def find_file(self, statement_file_id: str) -> reconciliation_pb2.StatementFile | None:
        """A statement file, if it is reconciled."""
        request = pb.GetStatementFileRequest(statement_file_id=statement_file_id)
        try:
            file = self._client.reconciliation.GetStatementFile(request).statement_file
        except NotFoundError:
            return None
        is_reconciled = file.state == reconciliation_pb2.STATEMENT_FILE_STATE_RECONCILED
        return file if is_reconciled else None

    def reconcile_file(
        self,
        request: pb.CreateStatementFileRequest,
        items: Iterable[pb.StatementItem],
        *,
        preview: bool,
        on_progress: Callable[[int], None],
    ) -> pb.ReconcileStatementFileResponse:
        """Sends a file while it is read, and compares it with the ledger."""
        return self._client.reconcile_statement_file(
            request, items, preview=preview, on_progress=on_progress
        )

    def list_breaks(self, selection: BreakSelection) -> Iterator[reconciliation_pb2.Break]:
        """Breaks, newest first, without their lines, ledger entries and history."""
        lists = [self._breaks_in(selection, state) for state in selection.states or ("",)]
        return heapq.merge(
            *lists,
            key=lambda found: (found.create_time.ToNanoseconds(), found.break_id),
            reverse=True,
        )

    def _breaks_in(
        self, selection: BreakSelection, state: str
    ) -> Iterator[reconciliation_pb2.Break]:
        request = pb.ListBreaksRequest(
            state=_STATES.number(state),
            break_class=_CLASSES.number(selection.break_class),
            kind=_KINDS.number(selection.kind),
            account=selection.account,
            assignee=selection.assignee,
            statement_file_id=selection.statement_file_id,
            page_size=_PAGE_SIZE,
        )
        return self._client.pages(self._client.reconciliation.ListBreaks, request, "breaks")

    def show_break(self, break_id: str) -> reconciliation_pb2.Break:
        """A break with its lines, ledger entries and history."""
        return self._client.reconciliation.GetBreak(
            pb.GetBreakRequest(break_id=break_id)
        ).reconciliation_break

    def open_break(
        self, account: str, transaction_id: str, entry_number: int, reason: str
    ) -> reconciliation_pb2.Break:
        """Opens a break for a ledger entry. `entry_number` 0: the only one that fits."""
        request = pb.OpenBreakRequest(
            account=account,
            transaction_id=transaction_id,
            entry_number=entry_number,
            reason=reason,
        )
        return self._client.reconciliation.OpenBreak(request).reconciliation_break

    def assign_break(self, break_id: str, assignee: str) -> reconciliation_pb2.Break:
        request = pb.AssignBreakRequest(break_id=break_id, assignee=assignee)
        return self._client.reconciliation.AssignBreak(request).reconciliation_break

    def comment_on_break(self, break_id: str, comment: str) -> reconciliation_pb2.Break:
        request = pb.CommentOnBreakRequest(break_id=break_id, comment=comment)
        return self._client.reconciliation.CommentOnBreak(request).reconciliation_break

    def resolve_break(
        self, break_id: str, resolution: Resolution, reason: str
    ) -> reconciliation_pb2.Break:
        request = pb.ResolveBreakRequest(
            break_id=break_id, resolution=_RESOLUTIONS.number(resolution), reason=reason
        )
        return self._client.reconciliation.ResolveBreak(request).reconciliation_break

    def approve_break(
        self, break_id: str, version: int | None, reason: str
    ) -> reconciliation_pb2.Break:
        """Approves what a version of a break proposes; None: the present one."""
        request = pb.ApproveBreakResolutionRequest(
            break_id=break_id, reason=reason, expected_version=version
        )
        return self._client.reconciliation.ApproveBreakResolution(request).reconciliation_break

    def reject_break(
        self, break_id: str, version: int | None, reason: str
    ) -> reconciliation_pb2.Break:
        """Rejects what a version of a break proposes; None: the present one."""
        request = pb.RejectBreakResolutionRequest(
            break_id=break_id, reason=reason, expected_version=version
        )
        return self._client.reconciliation.RejectBreakResolution(request).reconciliation_break

    def reopen_break(self, break_id: str, reason: str) -> reconciliation_pb2.Break:
        request = pb.ReopenBreakRequest(break_id=break_id, reason=reason)
        return self._client.reconciliation.ReopenBreak(request).reconciliation_break

    def match_breaks(
        self, break_ids: Sequence[str], reason: str
    ) -> Sequence[reconciliation_pb2.Break]:
        request = pb.MatchBreaksRequest(break_ids=break_ids, reason=reason)
        return self._client.reconciliation.MatchBreaks(request).breaks

    def clearing_report(self, account: str) -> pb.GetClearingReportResponse:
        return self._client.reconciliation.GetClearingReport(
            pb.GetClearingReportRequest(account=account)
        )

    def list_expected_entries(
        self, account: str, currency: str, min_age_days: int
    ) -> Iterator[reconciliation_pb2.LedgerItem]:
        """The ledger entries that no statement and no break has, oldest first."""
        request = pb.ListExpectedEntriesRequest(
            account=account, currency=currency, min_age_days=min_age_days, page_size=_PAGE_SIZE
        )
        return self._client.pages(
            self._client.reconciliation.ListExpectedEntries, request, "entries"
        )

    def list_rules(self) -> Sequence[reconciliation_pb2.BreakRule]:
        return self._client.reconciliation.ListBreakRules(pb.ListBreakRulesRequest()).rules

    def set_rule(
        self, kind: BreakKind, break_class: BreakClass | None, limit: int | None, reason: str
    ) -> reconciliation_pb2.BreakRule:
        """Sets a rule. None: as before."""
        number = _KINDS.number(kind)
        present = next(rule for rule in self.list_rules() if rule.kind == number)
        request = pb.SetBreakRuleRequest(
            kind=number,
            break_class=_CLASSES.number(break_class) or present.break_class,
            limit=present.limit if limit is None else limit,
            reason=reason,
        )
        return self._client.reconciliation.SetBreakRule(request).rule
