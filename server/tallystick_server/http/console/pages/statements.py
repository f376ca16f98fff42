"""Reconciliation runs: statement files, their reports, and the clearing report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.console.acts import Act, ActPage, Input
from tallystick_server.http.console.calls import gather_results
from tallystick_server.http.console.forms import read_multipart
from tallystick_server.http.console.links import path_of, with_query
from tallystick_server.http.console.statement_reader import (
    ReadStatement,
    StatementReader,
    UnreadableStatement,
)
from tallystick_server.http.console.values import to_values
from tallystick_server.http.console.visit import Answer, Page, Redirect, Visit
from tallystick_server.http.errors import HttpError
from tallystick_server.http.request import Request

LIST_PATH = path_of("statement-files")
_MAX_UPLOAD_CALLS = 100
"""For the chunks of a file, each of up to 2 MiB or 1,000 items."""
_MAX_FORM_BYTES = 64 * 1024
"""The parts of the form besides the file."""
_UPLOAD_TIMEOUT_SECONDS = 120.0
_MAX_WAIT_SECONDS = 60.0  # of an upload for another one
FormCheck = Callable[[Mapping[str, str]], None]
"""Raises HttpError unless the form was made for this session."""


async def list_files(visit: Visit) -> Answer:
    """GET /console/statement-files: newest first, with the form for another one."""
    return await _list_page(visit)


async def _list_page(
    visit: Visit, problem: str = "", entered: Mapping[str, str] | None = None
) -> Page:
    account = visit.query.get("account", "")
    response = await visit.calls.call(
        "reconciliation.ListStatementFiles", account=account, **visit.list_fields()
    )
    values = {
        "response": response,
        "problem": problem,
        "entered": entered or {},
        "may_upload": bool(visit.allowed(FILE_ACTS.acts)),
    }
    return Page("statement_files.html", "Statement files", values, 400 if problem else 200)


async def show_file(visit: Visit) -> Answer:
    """GET /console/statement-files/{statement_file_id}: its report, its breaks and its lines."""
    file_id = visit.variables["statement_file_id"]
    response = await visit.calls.call("reconciliation.GetStatementFile", statement_file_id=file_id)
    lines, breaks = await gather_results(
        visit.calls.attempt(
            "reconciliation.ListStatementLines", statement_file_id=file_id, **visit.list_fields()
        ),
        visit.calls.attempt("reconciliation.ListBreaks", statement_file_id=file_id, page_size=100),
    )
    file = response["statement_file"]
    values = {"file": file, "lines": lines, "breaks": breaks}
    return Page("statement_file.html", file["file_name"] or f"File {file_id}", values)


FILE_ACTS = ActPage(
    "statement-files/{statement_file_id}",
    show_file,
    (
        Act(
            "reconcile",
            "Reconcile",
            "reconciliation.ReconcileStatementFile",
            (Input("item_count", "Items"),),
            "The file is reconciled.",
        ),
    ),
)
"""The act on a file that was uploaded; its form is on the preview."""


async def show_clearing_report(visit: Visit) -> Answer:
    """GET /console/clearing: what clearing accounts have in the ledger and in the statements."""
    account = visit.query.get("account", "")
    response = await visit.calls.call("reconciliation.GetClearingReport", account=account)
    return Page("clearing.html", "Clearing report", {"response": response})


class StatementUpload:
    """Reads an uploaded file, sends it, and shows what reconciling it would do. One file at a time
    is in memory: it is received, read in a thread of its own, and sent. This bounds memory, so
    uploads take nothing from the bytes of other requests.
    """

    def __init__(self, read: StatementReader, max_bytes: int) -> None:
        self._read = read
        self._max_bytes = max_bytes
        self._uploading = asyncio.Lock()
        self._reading: asyncio.Future[ReadStatement] | None = None
        self._thread = ThreadPoolExecutor(1, "statement-upload")

    async def preview(self, visit: Visit, check_form: FormCheck) -> Answer:
        """The preview of a file, the page of one that was reconciled before, or the form with what
        is wrong. Raises CallFailed, HttpError.
        """
        await visit.require_operator("Uploads")
        async with self._hold_slot():
            fields, statement = await self._receive(visit.request, check_form)
            if isinstance(statement, str):
                return await _list_page(visit, statement, fields)
            account = statement.create.account
            if not await _has_account(visit, account):
                problem = f"The ledger has no account {account}."
                return await _list_page(visit, problem, fields)
            visit = replace(visit, calls=visit.calls.with_limit(_MAX_UPLOAD_CALLS))
            return await _send(visit, statement)

    @asynccontextmanager
    async def _hold_slot(self) -> AsyncIterator[None]:
        """Waits until no other file is uploaded. Raises HttpError if that takes too long."""
        try:
            async with asyncio.timeout(_MAX_WAIT_SECONDS):
                await self._uploading.acquire()
        except TimeoutError:
            raise HttpError(
                ApiError(
                    ErrorReason.OVERLOADED,
                    "Another file is being uploaded; try again in a minute.",
                    retry_after=60,
                )
            ) from None
        try:
            yield
        finally:
            reading, self._reading = self._reading, None
            if reading is None or reading.done():
                self._uploading.release()
            else:  # the browser has left: the next file waits until this one was read
                reading.add_done_callback(lambda _: self._uploading.release())

    async def _receive(
        self, request: Request, check_form: FormCheck
    ) -> tuple[Mapping[str, str], ReadStatement | str]:
        """The fields of the form, and its file or what is wrong with it. Raises HttpError."""
        body = await request.read_body(
            self._max_bytes + _MAX_FORM_BYTES, _UPLOAD_TIMEOUT_SECONDS, is_counted=False
        )
        fields, file = read_multipart(request.http.headers.get("Content-Type", ""), body)
        check_form(fields)
        if file is None or not file.content:
            return fields, "Choose a file that is not empty."
        account, reason = fields.get("account", "").strip(), fields.get("reason", "").strip()
        self._reading = asyncio.get_running_loop().run_in_executor(
            self._thread, self._read, file.name, file.content, account, reason
        )
        try:
            return fields, await asyncio.shield(self._reading)
        except UnreadableStatement as error:
            return fields, str(error)


async def _has_account(visit: Visit, account: str) -> bool:
    """Whether the ledger has the account. That of a bank appears with its first statement."""
    if account.startswith("banks/"):
        return True
    response = await visit.calls.call("ledger.ListAccounts", prefix=account, page_size=10)
    return any(line["account"] == account for line in response["accounts"])


async def _send(visit: Visit, statement: ReadStatement) -> Answer:
    """Previews a file, and stores it again for the decision: a preview deletes what was sent."""
    file_id = statement.create.statement_file_id
    if await _store(visit, statement) == "RECONCILED":
        return Redirect(with_query(path_of("statement-files", file_id), repeated="1"))
    request = pb.ReconcileStatementFileRequest(
        statement_file_id=file_id, item_count=statement.item_count, preview=True
    )
    response = to_values(await visit.calls.send("reconciliation.ReconcileStatementFile", request))
    await _store(visit, statement)
    values = {
        "file": response["statement_file"],
        "breaks": response["preview_breaks"],
        "item_count": statement.item_count,
        "action": path_of("statement-files", file_id, "reconcile"),
    }
    return Page("statement_preview.html", f"Preview of {statement.create.file_name}", values)


async def _store(visit: Visit, statement: ReadStatement) -> str:
    """Sends a file, unless it was reconciled before; returns its state."""
    created = await visit.calls.send("reconciliation.CreateStatementFile", statement.create)
    state: str = to_values(created)["statement_file"]["state"]
    if state != "RECONCILED":
        for chunk in statement.chunks:
            await visit.calls.send("reconciliation.BatchAddStatementItems", chunk)
    return state
