"""The RPCs of ReconciliationService."""

from __future__ import annotations

from datetime import datetime

from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.access import Role
from tallystick_core.errors import ApiError, ErrorReason, not_found_error
from tallystick_core.ledger.identifiers import BOOK, parse_account, parse_transaction_id
from tallystick_core.money import parse_currency
from tallystick_core.reconciliation.accounts import parse_statement_account
from tallystick_core.reconciliation.breaks import (
    BreakKind,
    BreakState,
    Resolution,
)
from tallystick_core.validation import (
    parse_id,
    parse_lookup_id,
    parse_optional_id,
    parse_reason_text,
    parse_text,
    require_item_count,
)
from tallystick_server.observability.tracing import traceparent
from tallystick_server.operations import alerts
from tallystick_server.operations.alerts import AlertHandlers
from tallystick_server.reconciliation import convert
from tallystick_server.reconciliation.break_commands import BreakCommands
from tallystick_server.reconciliation.break_fields import (
    MAX_BREAKS,
    parse_age,
    parse_break_ids,
    parse_entry_number,
)
from tallystick_server.reconciliation.break_opening import EntryName
from tallystick_server.reconciliation.explain import Explainer
from tallystick_server.reconciliation.ledger_reader import LedgerReader
from tallystick_server.reconciliation.reconcile_file import FileReconciler, Preview
from tallystick_server.reconciliation.rules import list_rules, parse_class, parse_limit, set_rule
from tallystick_server.reconciliation.statement_files import MAX_ITEMS, StatementFiles
from tallystick_server.rpc.call import Access, Call
from tallystick_server.rpc.pagination import NEWEST_FIRST, Listing, list_page
from tallystick_server.rpc.versions import parse_expected_version
from tallystick_storage.database import Database
from tallystick_storage.reconciliation import breaks as break_store
from tallystick_storage.reconciliation import open_items, postings
from tallystick_storage.reconciliation import statement_files as file_store
from tallystick_storage.reconciliation import statement_lines as line_store
from tallystick_storage.sql import Connection

_OPERATOR = frozenset({Role.OPERATOR})
_READ = frozenset({Role.OPERATOR, Role.AUDITOR})
ACCESS: Access = {
    "CreateStatementFile": _OPERATOR,
    "BatchAddStatementItems": _OPERATOR,
    "ReconcileStatementFile": _OPERATOR,
    "GetStatementFile": _READ,
    "ListStatementFiles": _READ,
    "ListStatementLines": _READ,
    "ListBreaks": _READ,
    "GetBreak": _READ,
    "OpenBreak": _OPERATOR,
    "AssignBreak": _OPERATOR,
    "CommentOnBreak": _OPERATOR,
    "ResolveBreak": _OPERATOR,
    "ApproveBreakResolution": _OPERATOR,
    "RejectBreakResolution": _OPERATOR,
    "ReopenBreak": _OPERATOR,
    "MatchBreaks": _OPERATOR,
    "GetClearingReport": _READ,
    "ListExpectedEntries": _READ,
    "Explain": _OPERATOR,
    "ListBreakRules": _READ,
    "SetBreakRule": _OPERATOR,
    **alerts.ACCESS,
}
_FILES = Listing(
    "ListStatementFiles",
    file_store.list_files,
    NEWEST_FIRST,
    lambda row: (row.create_time, row.statement_file_id),
    convert.file,
)
_LINES = Listing(
    "ListStatementLines", line_store.list_lines, (int,), lambda row: (row.number,), convert.line
)
_BREAKS = Listing(
    "ListBreaks",
    break_store.list_breaks,
    NEWEST_FIRST,
    lambda row: (row.create_time, row.break_id),
    convert.reconciliation_break,
)
_EXPECTED_ENTRIES = Listing(
    "ListExpectedEntries",
    open_items.list_expected,
    (datetime, str, int, int),
    lambda row: (row.effective_time, row.book, row.sequence, row.entry_number),
    convert.item,
)


class ReconciliationHandlers(AlertHandlers):
    """Handlers only decode, await and encode."""

    def __init__(
        self,
        database: Database,
        files: StatementFiles,
        reconciler: FileReconciler,
        commands: BreakCommands,
        reader: LedgerReader,
        explainer: Explainer,
    ) -> None:
        super().__init__(database)
        self._files = files
        self._reconciler = reconciler
        self._commands = commands
        self._reader = reader
        self._explainer = explainer

    async def CreateStatementFile(
        self, request: pb.CreateStatementFileRequest, call: Call
    ) -> pb.CreateStatementFileResponse:
        row, is_replayed = await self._files.create(convert.parse_file(request, call.caller.name))
        if is_replayed:
            call.mark_replayed()
        return pb.CreateStatementFileResponse(statement_file=await self._get_file(row))

    async def BatchAddStatementItems(
        self, request: pb.BatchAddStatementItemsRequest, _call: Call
    ) -> pb.BatchAddStatementItemsResponse:
        file_id = parse_id(request.statement_file_id, "statement_file_id")
        require_item_count(request.items, "items", MAX_ITEMS)
        count = await self._files.add_items(file_id, request.first_item, request.items)
        return pb.BatchAddStatementItemsResponse(item_count=count)

    async def ReconcileStatementFile(
        self, request: pb.ReconcileStatementFileRequest, call: Call
    ) -> pb.ReconcileStatementFileResponse:
        file_id = parse_id(request.statement_file_id, "statement_file_id")
        await self._reader.catch_up()
        if request.preview:
            preview = await self._reconciler.preview(file_id, request.item_count, call.caller.name)
            return pb.ReconcileStatementFileResponse(
                statement_file=convert.file(preview.file, preview.counts, preview.sums),
                preview_breaks=_preview_breaks(preview),
            )
        row, is_replayed = await self._reconciler.reconcile(
            file_id, request.item_count, call.caller.name
        )
        if is_replayed:
            call.mark_replayed()
        return pb.ReconcileStatementFileResponse(statement_file=await self._get_file(row))

    async def GetStatementFile(
        self, request: pb.GetStatementFileRequest, _call: Call
    ) -> pb.GetStatementFileResponse:
        file_id = parse_id(request.statement_file_id, "statement_file_id")
        row = await self._database.read(lambda connection: file_store.find(connection, file_id))
        if row is None:
            raise not_found_error("statement file", file_id)
        return pb.GetStatementFileResponse(statement_file=await self._get_file(row))

    async def ListStatementFiles(
        self, request: pb.ListStatementFilesRequest, _call: Call
    ) -> pb.ListStatementFilesResponse:
        filters = file_store.FileFilter(parse_text(request.account, "account", 255) or None)
        files, token = await list_page(self._database, _FILES, request, filters)
        return pb.ListStatementFilesResponse(statement_files=files, next_page_token=token)

    async def ListStatementLines(
        self, request: pb.ListStatementLinesRequest, _call: Call
    ) -> pb.ListStatementLinesResponse:
        file_id = parse_id(request.statement_file_id, "statement_file_id")
        lines, token = await list_page(self._database, _LINES, request, (file_id,))
        return pb.ListStatementLinesResponse(lines=lines, next_page_token=token)

    async def ListBreaks(self, request: pb.ListBreaksRequest, _call: Call) -> pb.ListBreaksResponse:
        filters = break_store.BreakFilter(
            convert.STATES.parse(request.state, "state", "") or None,
            convert.CLASSES.parse(request.break_class, "break_class", "") or None,
            convert.KINDS.parse(request.kind, "kind", "") or None,
            parse_text(request.account, "account", 255) or None,
            parse_optional_id(request.assignee, "assignee") or None,
            parse_optional_id(request.statement_file_id, "statement_file_id") or None,
        )
        breaks, token = await list_page(self._database, _BREAKS, request, filters)
        return pb.ListBreaksResponse(breaks=breaks, next_page_token=token)

    async def GetBreak(self, request: pb.GetBreakRequest, _call: Call) -> pb.GetBreakResponse:
        break_id = parse_id(request.break_id, "break_id")
        message = await self._database.read(lambda connection: _load_break(connection, break_id))
        return pb.GetBreakResponse(reconciliation_break=message)

    async def OpenBreak(self, request: pb.OpenBreakRequest, call: Call) -> pb.OpenBreakResponse:
        entry = EntryName(
            parse_statement_account(request.account, "account"),
            parse_transaction_id(request.transaction_id),
            parse_entry_number(request.entry_number),
        )
        reason = parse_reason_text(request.reason, "reason")
        await self._reader.catch_up()
        result = await self._commands.open(entry, call.caller.name, reason, traceparent())
        return pb.OpenBreakResponse(reconciliation_break=_changed(result, call))

    async def AssignBreak(
        self, request: pb.AssignBreakRequest, call: Call
    ) -> pb.AssignBreakResponse:
        break_id = parse_id(request.break_id, "break_id")
        assignee = parse_optional_id(request.assignee, "assignee")
        result = await self._commands.assign(break_id, assignee, call.caller.name, traceparent())
        return pb.AssignBreakResponse(reconciliation_break=_changed(result, call))

    async def CommentOnBreak(
        self, request: pb.CommentOnBreakRequest, call: Call
    ) -> pb.CommentOnBreakResponse:
        break_id = parse_id(request.break_id, "break_id")
        comment = parse_reason_text(request.comment, "comment")
        result = await self._commands.comment(break_id, comment, call.caller.name, traceparent())
        return pb.CommentOnBreakResponse(reconciliation_break=_changed(result, call))

    async def ResolveBreak(
        self, request: pb.ResolveBreakRequest, call: Call
    ) -> pb.ResolveBreakResponse:
        break_id = parse_id(request.break_id, "break_id")
        resolution = Resolution(convert.RESOLUTIONS.parse(request.resolution, "resolution"))
        if resolution is Resolution.MATCH:
            raise ApiError(
                ErrorReason.FIELD_INVALID,
                "resolution must be ADJUST, ACCEPT or WRITE_OFF; MatchBreaks matches.",
                field="resolution",
            )
        reason = parse_reason_text(request.reason, "reason")
        result = await self._commands.resolve(
            break_id, resolution, call.caller.name, reason, traceparent()
        )
        return pb.ResolveBreakResponse(reconciliation_break=_changed(result, call))

    async def ApproveBreakResolution(
        self, request: pb.ApproveBreakResolutionRequest, call: Call
    ) -> pb.ApproveBreakResolutionResponse:
        break_id = parse_id(request.break_id, "break_id")
        reason = parse_reason_text(request.reason, "reason")
        result = await self._commands.approve(
            break_id, parse_expected_version(request), call.caller.name, reason, traceparent()
        )
        self._reader.expect_ends()
        return pb.ApproveBreakResolutionResponse(reconciliation_break=_changed(result, call))

    async def RejectBreakResolution(
        self, request: pb.RejectBreakResolutionRequest, call: Call
    ) -> pb.RejectBreakResolutionResponse:
        break_id = parse_id(request.break_id, "break_id")
        reason = parse_reason_text(request.reason, "reason")
        result = await self._commands.reject(
            break_id, parse_expected_version(request), call.caller.name, reason, traceparent()
        )
        self._reader.expect_ends()
        return pb.RejectBreakResolutionResponse(reconciliation_break=_changed(result, call))

    async def ReopenBreak(
        self, request: pb.ReopenBreakRequest, call: Call
    ) -> pb.ReopenBreakResponse:
        break_id = parse_id(request.break_id, "break_id")
        reason = parse_reason_text(request.reason, "reason")
        result = await self._commands.reopen(break_id, call.caller.name, reason, traceparent())
        self._reader.expect_ends()
        return pb.ReopenBreakResponse(reconciliation_break=_changed(result, call))

    async def MatchBreaks(
        self, request: pb.MatchBreaksRequest, call: Call
    ) -> pb.MatchBreaksResponse:
        break_ids = parse_break_ids(request.break_ids)
        reason = parse_reason_text(request.reason, "reason")
        rows, is_replayed = await self._commands.match(
            break_ids, call.caller.name, reason, traceparent()
        )
        if is_replayed:
            call.mark_replayed()
        return pb.MatchBreaksResponse(breaks=[convert.reconciliation_break(row) for row in rows])

    async def GetClearingReport(
        self, request: pb.GetClearingReportRequest, _call: Call
    ) -> pb.GetClearingReportResponse:
        account = parse_text(request.account, "account", 255)
        await self._reader.catch_up()
        report = await self._database.read(
            lambda connection: postings.clearing_report(connection, account, BOOK)
        )
        return pb.GetClearingReportResponse(
            accounts=convert.clearing_accounts(report),
            transaction_id=f"{BOOK}-{report.sequence}" if report.sequence else "",
        )

    async def ListExpectedEntries(
        self, request: pb.ListExpectedEntriesRequest, _call: Call
    ) -> pb.ListExpectedEntriesResponse:
        filters = open_items.ExpectedFilter(
            parse_account(request.account),
            parse_currency(request.currency),
            parse_age(request.min_age_days),
        )
        await self._reader.catch_up()
        entries, token = await list_page(self._database, _EXPECTED_ENTRIES, request, filters)
        return pb.ListExpectedEntriesResponse(entries=entries, next_page_token=token)

    async def Explain(self, request: pb.ExplainRequest, _call: Call) -> pb.ExplainResponse:
        id_ = parse_lookup_id(request.id, "id")
        return pb.ExplainResponse(explanation=await self._explainer.explain(id_))

    async def ListBreakRules(
        self, _request: pb.ListBreakRulesRequest, _call: Call
    ) -> pb.ListBreakRulesResponse:
        rules = await self._database.read(list_rules)
        return pb.ListBreakRulesResponse(rules=rules)

    async def SetBreakRule(
        self, request: pb.SetBreakRuleRequest, call: Call
    ) -> pb.SetBreakRuleResponse:
        kind = BreakKind(convert.KINDS.parse(request.kind, "kind"))
        break_class = parse_class(request.break_class, kind)
        reason = parse_reason_text(request.reason, "reason")
        limit = parse_limit(request.limit, kind)
        caller = call.caller.name
        rule, is_replayed = await self._database.transact(
            lambda connection: set_rule(connection, kind, break_class, limit, caller, reason)
        )
        if is_replayed:
            call.mark_replayed()
        return pb.SetBreakRuleResponse(rule=rule)

    async def _get_file(self, row: file_store.FileRow) -> reconciliation_pb2.StatementFile:
        """A file with what became of it."""
        return await self._database.load(
            lambda connection: convert.file(
                row,
                break_store.count_by_kind(connection, row.file_number),
                postings.sums_of_file(connection, row.file_number),
            )
        )


def _changed(result: tuple[break_store.BreakRow, bool], call: Call) -> reconciliation_pb2.Break:
    """The break of a command; a repeat is marked."""
    row, is_replayed = result
    if is_replayed:
        call.mark_replayed()
    return convert.reconciliation_break(row)


def _load_break(connection: Connection, break_id: str) -> reconciliation_pb2.Break:
    rows = break_store.find(connection, [break_id])
    if break_id not in rows:
        raise not_found_error("break", break_id)
    row = rows[break_id]
    lines = line_store.lines_of_breaks(connection, [break_id], MAX_BREAKS)
    posted = postings.of_breaks(connection, [break_id])
    is_adjusted = row.state == BreakState.RESOLVED and bool(posted)
    message = convert.reconciliation_break(row, posted[-1].transaction_id if is_adjusted else "")
    message.lines.extend(map(convert.line, lines))
    items = break_store.items_of(connection, [break_id], MAX_BREAKS)
    message.ledger_items.extend(map(convert.item, items))
    message.changes.extend(map(convert.change, break_store.changes_of(connection, break_id)))
    return message


def _preview_breaks(preview: Preview) -> list[reconciliation_pb2.Break]:
    """The breaks of a preview, with their lines and ledger entries."""
    messages = {row.break_id: convert.reconciliation_break(row) for row in preview.breaks}
    for line in preview.lines:
        messages[line.break_id or ""].lines.append(convert.line(line))
    for item in preview.items:
        messages[item.break_id].ledger_items.append(convert.item(item))
    return list(messages.values())
