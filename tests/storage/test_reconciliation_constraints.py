"""Each reconciliation invariant that the database enforces: direct SQL under the service's own role
violates it, and is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.constraints import EMPTY_TEXT, copy_of, execute_as, insert_event
from tests.support.platform import fresh_database, serve_platform
from tests.support.reconciliation import (
    Provider,
    charge,
    posted_clearing,
    reconcile,
    statement,
)


@pytest.fixture(scope="module")
def filled_database(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DatabaseUrls]:
    """A database with a file, in which the first line is matched and the second is in the break
    f1-2, a file that repeats the first line, a file that is loading, and a rule; no process serves
    it any more.
    """
    with fresh_database(admin_url, tmp_path_factory.mktemp("filled")) as databases:
        settings = Settings().replace(reconciliation__posting_interval=0.1)
        with serve_platform(databases, settings) as platform, platform.client() as client:
            provider = Provider(client, "p")
            provider.pay_in(10_00, "ch-1")
            matched_line = charge(10_00, "ch-1", fee=30)
            reconcile(
                client, provider.account, [matched_line, charge(5_00, "ch-9")], file_name="first"
            )
            reconcile(client, provider.account, [matched_line], file_name="second")
            posted_clearing(client, provider.account)
            file_request = pb.CreateStatementFileRequest(
                statement_file_id="loading",
                file_name="third",
                content_sha256="0" * 64,
                format="test",
                account=provider.account,
            )
            client.reconciliation.CreateStatementFile(file_request)
            client.reconciliation.BatchAddStatementItems(
                pb.BatchAddStatementItemsRequest(
                    statement_file_id="loading", items=statement([charge(7_00, "ch-7")])
                )
            )
            client.reconciliation.SetBreakRule(
                pb.SetBreakRuleRequest(
                    kind=reconciliation_pb2.BREAK_KIND_ROUNDING,
                    break_class=reconciliation_pb2.BREAK_CLASS_AUTOMATIC,
                    limit=2,
                    reason="x",
                )
            )
        yield databases


def change_break(
    *,
    version: int = 2,
    change_version: int = 2,
    with_event: bool = True,
    with_change: bool = True,
    **columns: str,
) -> str:
    """The next change of the open break, with its history and its event, in one statement."""
    time = "update_time + interval '1 s'"
    values = {"version": str(version), "update_time": time, **columns}
    parts = [
        f"x as ({insert_event('breaks/f1-2', version)})" if with_event else "",
        (
            f"c as (insert into break_change select break_id, {change_version}, 'COMMENTED', "
            f"'ann', 'x', null, assignee, '', {time} from break where break_id = 'f1-2')"
        )
        if with_change
        else "",
    ]
    clause = ", ".join(filter(None, parts))
    return (
        f"{f'with {clause} ' if clause else ''}update break set "
        f"{', '.join(f'{name} = {value}' for name, value in values.items())} "
        "where break_id = 'f1-2'"
    )


def new_file(name: str = "fourth", **values: str) -> str:
    """An insert of a file that is loading."""
    columns = {
        "statement_file_id": "'new'",
        "file_name": f"'{name}'",
        "content_sha256": "repeat('0', 64)",
        "format": "'test'",
        "account": "'psp/p/clearing'",
        "difference_reason": EMPTY_TEXT,
        "caller": "'t'",
        "state": "'LOADING'",
        "item_count": "0",
        "line_count": "0",
        "statement_count": "0",
        "matched_count": "0",
        "repeated_count": "0",
        "create_time": "clock()",
        **values,
    }
    return (
        f"insert into statement_file ({', '.join(columns)}) values ({', '.join(columns.values())})"
    )


_MATCHED_LINE = "file_number = 1 and number = 1"
_BROKEN_LINE = "file_number = 1 and number = 2"
_REPEATED_LINE = "outcome = 'REPEATED'"
_OTHER_IDENTITY = {"identity": "00000000-0000-4000-8000-000000000000"}
_NEW_BREAK = {"break_id": "f1-3"}
_NEW_POSTING = {"source_id": "new", "is_posted": False, "transaction_id": ""}
CASES = [
    # files and lines
    (
        "R2 two files of one name",
        new_file("first", state="'RECONCILED'", reconcile_time="clock()"),
        "23505",
    ),
    ("R2 a reconciled file without a time", new_file(state="'RECONCILED'"), "23514"),
    ("R2 a file that loads and was reconciled", new_file(reconcile_time="clock()"), "23514"),
    ("R2 a file with more lines than items", new_file(line_count="1"), "23514"),
    (
        "R2 a file with more results than lines",
        new_file(item_count="1", line_count="1", matched_count="1", repeated_count="1"),
        "23514",
    ),
    ("R2 a file without a name", new_file(""), "23514"),
    ("R2 a digest that is none", new_file(content_sha256="'x'"), "23514"),
    ("R2 a file in no state", new_file(state="'X'"), "23514"),
    (
        "R2 a reconciled file that changes",
        "update statement_file set matched_count = 0 where state = 'RECONCILED'",
        "P0001",
    ),
    (
        "R2 a reconciled file that is loaded again",
        "update statement_file set state = 'LOADING', reconcile_time = null "
        "where state = 'RECONCILED'",
        "P0001",
    ),
    (
        "R2 a reconciled file that is deleted",
        "delete from statement where file_number = 1; "
        "delete from statement_file where file_number = 1",
        "P0001",
    ),
    (
        "R2 a reconciled file with another name",
        "update statement_file set file_name = 'x'",
        "42501",
    ),
    (
        "R2 a statement of a reconciled file that changes",
        "update statement set total = 0 where file_number = 1",
        "P0001",
    ),
    (
        "R2 a statement of a reconciled file that is deleted",
        "delete from statement where file_number = 1",
        "P0001",
    ),
    (
        "R2 another statement of a reconciled file",
        copy_of("statement", "file_number = 1", statement_number=2),
        "P0001",
    ),
    (
        "R2 a statement of no file",
        copy_of("statement", "file_number = 3", file_number=99),
        "23503",
    ),
    (
        "R2 a statement that begins twice",
        copy_of("statement", "file_number = 3"),
        "23505",
    ),
    (
        "R2 a line that counts twice",
        copy_of("statement_line", _MATCHED_LINE, number=9),
        "23505",
    ),
    ("R1 a line that is there twice", copy_of("statement_line", _REPEATED_LINE), "23505"),
    ("R1 a line that changes", "update statement_line set outcome = 'REPEATED'", "42501"),
    ("R1 a line that is deleted", "delete from statement_line", "42501"),
    *[
        (
            f"R1 {what}",
            copy_of("statement_line", where, number=9, **_OTHER_IDENTITY, **values),
            "23514",
        )
        for what, where, values in (
            ("a matched line without a rule", _MATCHED_LINE, {"match_rule": ""}),
            ("a matched line without a match", _MATCHED_LINE, {"match_number": None}),
            ("a matched line in a break", _MATCHED_LINE, {"break_id": "f1-2"}),
            ("a line in no break", _BROKEN_LINE, {"break_id": None}),
            ("a line in a break that is matched", _BROKEN_LINE, {"match_number": 2}),
            ("a line that repeats none", _REPEATED_LINE, {"first_file_number": None}),
            ("a line in a break that is repeated", _BROKEN_LINE, {"first_file_number": 1}),
            ("a line of no outcome", _MATCHED_LINE, {"outcome": "X"}),
            ("a line of no type", _MATCHED_LINE, {"line_type": "X"}),
            ("a line with half a conversion", _MATCHED_LINE, {"original_amount": 1}),
            ("a line that occurs never", _MATCHED_LINE, {"occurrence": 0}),
        )
    ],
    # entries
    ("R1 an entry that is closed twice", copy_of("closed_item", "match_number = 1"), "23505"),
    ("R1 a closed entry that changes", "update closed_item set break_id = 'x'", "42501"),
    ("R1 a closed entry that is deleted", "delete from closed_item", "42501"),
    *[
        (
            f"R1 {what}",
            copy_of("closed_item", "match_number = 1", sequence=999, **values),
            "23514",
        )
        for what, values in (
            ("a closed entry of nothing", {"match_number": None}),
            ("an entry in a match and a break", {"break_id": "f1-2"}),
            ("an own entry in a match", {"is_own": True}),
            ("an entry in a match of no file", {"file_number": None}),
            ("an entry of zero", {"amount": 0}),
        )
    ],
    ("R1 an entry that is there twice", copy_of("ledger_item", "sequence = 1"), "23505"),
    ("R1 an entry that changes", "update ledger_item set amount = 1", "42501"),
    ("R1 an entry that is deleted", "delete from ledger_item", "42501"),
    *[
        (f"R1 {what}", copy_of("ledger_item", "sequence = 1", sequence=999, **values), "23514")
        for what, values in (
            ("a read entry of zero", {"amount": 0}),
            ("a read entry of no type", {"line_type": "X"}),
        )
    ],
    (
        "R1 the position that goes back",
        "update ledger_position set sequence = sequence - 1",
        "P0001",
    ),
    ("R1 the position that is deleted", "delete from ledger_position", "42501"),
    ("R1 a balance that is deleted", "delete from clearing_balance", "42501"),
    *[
        (f"R1 a sum of the report that a service changes: {sql}", sql, "42501")
        for sql in (
            "update expected_sum set amount = 0",
            "delete from expected_sum",
            "update break_sum set amount = 0",
            "delete from break_sum",
            "select add_to_break_sum('a', 'EUR', 'FINANCE', 1, 1)",
        )
    ],
    # breaks
    (
        "P4 a break that skips a version",
        change_break(version=3, change_version=3),
        "P0001",
    ),
    ("P4 a break that changes without a change", change_break(with_change=False), "P0001"),
    ("P4 a break that is not its last change", change_break(assignee="'bob'"), "P0001"),
    (
        "P4 a break with another time than its change",
        change_break(update_time="update_time + interval '2 s'"),
        "P0001",
    ),
    ("P4 a change with a gap before it", change_break(change_version=3), "P0001"),
    (
        "P4 a change without its break",
        copy_of("break_change", "break_id = 'f1-2'", version=3),
        "P0001",
    ),
    (
        "P4 a change of no break",
        copy_of("break_change", "break_id = 'f1-2'", break_id="f1-9"),
        "23503",
    ),
    (
        "P4 a new break without its change",
        f"with x as ({insert_event('breaks/f1-3', 1)}) "
        + copy_of("break", "break_id = 'f1-2'", **_NEW_BREAK),
        "P0001",
    ),
    (
        "T1 a break whose time falls",
        change_break(update_time="update_time - interval '1 s'"),
        "P0001",
    ),
    ("R3 a break of another amount", change_break(difference="difference + 1"), "42501"),
    ("R3 a break of another kind", change_break(kind="'RESERVE'"), "42501"),
    ("R3 a break that is deleted", "delete from break", "42501"),
    (
        "R3 a resolved break without a resolution",
        change_break(state="'RESOLVED'"),
        "23514",
    ),
    ("R3 an open break with a resolution", change_break(resolution="'ADJUST'"), "23514"),
    (
        "R3 a resolution that nobody proposed",
        change_break(state="'AWAITING_APPROVAL'", resolution="'ADJUST'"),
        "23514",
    ),
    (
        "R3 a proposal of a resolved break",
        change_break(state="'RESOLVED'", resolution="'ADJUST'", proposed_by="'ann'"),
        "23514",
    ),
    ("R3 a resolution that is none", change_break(resolution="'X'", state="'RESOLVED'"), "23514"),
    ("R3 a change that is changed", "update break_change set reason = 'x'", "42501"),
    ("R3 a change that is deleted", "delete from break_change", "42501"),
    (
        "R3 a change of nobody",
        copy_of("break_change", "break_id = 'f1-2'", version=2, caller=""),
        "23514",
    ),
    ("R3 a rule that is changed", "update break_rule set rule_limit = 9", "42501"),
    ("R3 a rule that is deleted", "delete from break_rule", "42501"),
    ("R3 a rule that is set twice", copy_of("break_rule", "true"), "23505"),
    ("R3 a rule that replaces the built-in", copy_of("break_rule", "true", version=1), "23514"),
    ("R3 a rule of nobody", copy_of("break_rule", "true", version=3, caller=""), "23514"),
    (
        "R3 a rule without a reason",
        copy_of("break_rule", "true", version=3, reason=""),
        "23514",
    ),
    ("E1 a change without an event", change_break(with_event=False), "P0001"),
    ("E1 an event of no break", insert_event("breaks/f1-2", 9), "P0001"),
    # postings
    (
        "R3 a posting that is posted twice",
        "update ledger_posting set transaction_id = 'main-9'",
        "P0001",
    ),
    ("R3 a posting of another amount", "update ledger_posting set amount = 1", "42501"),
    ("R3 a posting that is deleted", "delete from ledger_posting", "42501"),
    ("L8 the same posting twice", copy_of("ledger_posting", "true"), "23505"),
    *[
        (f"R3 {what}", copy_of("ledger_posting", "true", **{**_NEW_POSTING, **values}), sqlstate)
        for what, values, sqlstate in (
            ("a posting without a reason", {"reason": ""}, "23514"),
            ("a posting of nobody", {"caller": ""}, "23514"),
            ("a posting of another service's kind", {"kind": "PAY_IN"}, "23514"),
            ("a posting with a transaction too early", {"transaction_id": "main-9"}, "23514"),
            ("a posting without its transaction", {"is_posted": True}, "23514"),
            ("a posting for no break", {"break_id": "f1-9"}, "23503"),
        )
    ],
]


@pytest.mark.parametrize(
    ("sql", "sqlstate"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_database_rejects_invalid_rows(
    filled_database: DatabaseUrls, sql: str, sqlstate: str
) -> None:
    """The row that would violate the invariant is rejected, by the intended constraint, trigger or
    privilege.
    """
    assert execute_as(filled_database, "reconciliation", sql) == sqlstate


@pytest.mark.parametrize(
    "sql",
    [
        change_break(),
        new_file(),
        "update statement set line_count = 2 where file_number = 3",
        copy_of("statement", "file_number = 3", statement_number=2),
        copy_of("statement_line", _MATCHED_LINE, number=9, **_OTHER_IDENTITY),
        copy_of("closed_item", "match_number = 1", sequence=999),
        copy_of("ledger_item", "sequence = 1", sequence=999),
        copy_of("ledger_posting", "true", **_NEW_POSTING),
        copy_of("break_rule", "true", version=3),
    ],
)
def test_the_database_accepts_the_rows_that_the_cases_change(
    filled_database: DatabaseUrls, sql: str
) -> None:
    """R1, R2, R3: without their violation the statements of the cases are accepted."""
    with psycopg.connect(filled_database.service("reconciliation")) as connection:
        assert connection.execute(sql.encode()).rowcount == 1
        connection.execute("set constraints all immediate")
        connection.rollback()


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("statement_line", "text"),
        ("ledger_item", "amount"),
        ("closed_item", "amount"),
        ("break_change", "reason"),
        ("break_rule", "reason"),
    ],
)
@pytest.mark.parametrize("sql", ["update {} set {} = {}", "delete from {}", "truncate {} cascade"])
def test_triggers_reject_changes_without_privileges(
    filled_database: DatabaseUrls, table: str, column: str, sql: str
) -> None:
    """R3: with the privilege off (as administrator) the trigger still rejects the change."""
    statement_ = sql.format(f"reconciliation.{table}", column, column)
    assert execute_as(filled_database, "reconciliation", statement_, role="owner") == "P0001"


@pytest.mark.parametrize(
    "insert",
    [
        "expected_sum values ('a', 'EUR', '2026-01-02 01:02Z', 1, 1)",  # not an hour
        "expected_sum values ('a', 'EUR', '2026-01-02 01:00Z', -1, 1)",
        "expected_sum values ('a', 'EUR', '2026-01-02 01:00Z', 0, 1)",  # without entries
        "break_sum values ('a', 'EUR', 'FINANCE', default, 0, 0)",
    ],
)
def test_a_sum_of_the_clearing_report_must_be_possible(
    filled_database: DatabaseUrls, insert: str
) -> None:
    """R1: it has a whole hour, and no amount without entries; a sum of zero has no row. Only
    triggers write them.
    """
    insert = f"insert into {insert}"
    assert execute_as(filled_database, "reconciliation", insert, role="owner") == "23514"


@pytest.mark.parametrize(
    "table", ["break", "ledger_posting", "ledger_position", "clearing_balance"]
)
@pytest.mark.parametrize("sql", ["delete from {}", "truncate {} cascade"])
def test_triggers_reject_deletions_without_privileges(
    filled_database: DatabaseUrls, table: str, sql: str
) -> None:
    """R3: rows that change are never deleted."""
    statement_ = sql.format(f"reconciliation.{table}")
    assert execute_as(filled_database, "reconciliation", statement_, role="owner") == "P0001"
