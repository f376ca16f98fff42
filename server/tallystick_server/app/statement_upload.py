"""Reads the statement files that are uploaded to the console."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from tallystick._statements import chunks, count_items
from tallystick_core.errors import ApiError
from tallystick_core.reconciliation.accounts import parse_statement_account
from tallystick_core.reconciliation.statement import (
    DamagedFile,
    StatementEnd,
    UnbalancedStatement,
)
from tallystick_server.http.console.statement_reader import ReadStatement, UnreadableStatement
from tallystick_server.reconciliation.formats.messages import (
    content_digest,
    create_request,
    to_messages,
)
from tallystick_server.reconciliation.formats.registry import (
    account_problem,
    find_format,
    read_blocks,
)
from tallystick_server.reconciliation.formats.text_file import TextFile

_MAX_NAME_LENGTH = 100


def read_statement(name: str, content: bytes, account: str, reason: str) -> ReadStatement:
    """A `StatementReader`. The file is in a folder of its own while it is read."""
    try:
        account = parse_statement_account(account, "account")
        with TemporaryDirectory(prefix="tallystick-") as folder:
            path = Path(folder) / _plain_name(name)
            path.write_bytes(content)
            return _read(path, account, reason)
    except ApiError as error:
        raise UnreadableStatement(error.message) from None
    except UnbalancedStatement as error:
        raise UnreadableStatement(
            f"{error}. Give a reason for the difference to accept it."
        ) from None
    except DamagedFile as error:
        raise UnreadableStatement(f"{error}.") from None


def _plain_name(name: str) -> str:
    """The name without what a file system does not accept."""
    plain = "".join(
        character if character.isprintable() and character not in '/\\:*?"<>|' else "_"
        for character in name
    )
    return plain.strip(" .").encode()[:_MAX_NAME_LENGTH].decode("utf-8", "ignore") or "statement"


def _read(path: Path, account: str, reason: str) -> ReadStatement:
    text_file = TextFile(path)
    format_ = find_format(text_file)
    if problem := account_problem(format_, account):
        raise UnreadableStatement(f"{path.name} {problem}.")
    items = list(read_blocks(text_file, format_, accepts_difference=bool(reason)))
    has_difference = any(isinstance(item, StatementEnd) and item.difference for item in items)
    create = create_request(
        path.name,
        content_digest(path),
        format_.name,
        account,
        reason if has_difference else "",
    )
    requests = list(chunks(create.statement_file_id, to_messages(items)))
    return ReadStatement(create, requests, sum(count_items(request.items) for request in requests))
