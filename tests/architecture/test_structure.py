"""The structure of the project: directions of imports, the contract's rules, generated code, and
forbidden names.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import get_args

import pytest
from google.protobuf.descriptor_pb2 import MethodOptions

import tallystick_storage
from tallystick.history.v1 import history_pb2
from tallystick.ledger.v1 import ledger_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.wallet.v1 import wallet_pb2
from tallystick_core.ledger.posting_rules import PostingKind
from tallystick_core.operations.alert import AlertKind
from tallystick_core.operations.dead_letter import DeadLetterCause, DeadLetterState
from tallystick_core.payment.charge import TRIGGERS
from tallystick_core.payment.checkout import ChargeMode, MethodType, PartialFailurePolicy
from tallystick_core.payment.state import OrderStatus, PaymentTransitionReason
from tallystick_core.payout.batch import BatchState
from tallystick_core.payout.destination import DestinationState
from tallystick_core.payout.quote import PayoutBlocker
from tallystick_core.payout.reported_transfer import TransferMatch
from tallystick_core.payout.schedule import Interval, Weekday
from tallystick_core.payout.state import TRIGGERS as PAYOUT_TRIGGERS
from tallystick_core.payout.state import PayoutState, PayoutTransitionReason
from tallystick_core.provider.outcome import (
    ChargeOutcome,
    FailureReason,
    PayoutFailure,
    PayoutOutcome,
    PendingReason,
)
from tallystick_core.wallet.state import EntryKind, HoldState
from tallystick_server.app.services import SERVICES, service_names
from tallystick_server.app.wiring import implementation_of
from tallystick_server.service_spec import ServiceSpec
from tallystick_storage.sql import Query, Statement
from tests.support.platform import ROOT

TOOLS_FOLDER = Path(sys.executable).parent


def source_files(*roots: str) -> list[Path]:
    files = [
        path for root in roots for path in (ROOT / root).rglob("*.py") if "_pb2" not in path.name
    ]
    assert files
    return files


def run_tool(*command: str) -> None:
    completed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_imports_follow_the_layers() -> None:
    """The layers, the boundaries between services and the SDK's independence, as importlinter.ini
    defines them.
    """
    run_tool(str(TOOLS_FOLDER / "lint-imports"), "--config", "importlinter.ini", "--no-cache")


def test_the_domain_layer_imports_only_the_standard_library() -> None:
    """tallystick_core has no dependencies, and uses no I/O, clocks or randomness of the standard
    library.
    """
    allowed = sys.stdlib_module_names - {
        "asyncio",
        "random",
        "secrets",
        "time",
        "socket",
        "os",
        "subprocess",
        "uuid",
        "threading",
    } | {"tallystick_core"}
    for path in source_files("server/tallystick_core"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert {name.partition(".")[0] for name in names} <= allowed, path


def test_generated_code_is_fresh() -> None:
    """The committed stubs and currencies are up to date with the protos and iso4217."""
    run_tool(sys.executable, "scripts/generate.py", "--check")


def test_the_contract_lints_and_does_not_break(tmp_path: Path) -> None:
    """buf: STANDARD, COMMENTS, UNARY_RPC; and no released element changes incompatibly."""
    image = str(tmp_path / "x.binpb")
    run_tool(sys.executable, "scripts/generate.py", "--descriptors", image)
    run_tool(
        str(TOOLS_FOLDER / "buf"), "lint", image, "--path", "tallystick", "--config", "buf.yaml"
    )
    released_descriptor = ROOT / "protos" / "released.binpb"
    run_tool(
        str(TOOLS_FOLDER / "buf"),
        "breaking",
        image,
        "--against",
        str(released_descriptor),
        "--config",
        "buf.yaml",
        "--exclude-path",
        "tallystick/payout",
    )


def test_each_rpc_has_messages_of_its_own() -> None:
    """No two calls share a request or a response, except those about dead letters and alerts, which
    every service has with the same messages.
    """
    methods = [method for spec in SERVICES for method in spec.descriptor.methods]
    messages = [item for method in methods for item in (method.input_type, method.output_type)]
    shared = [message for message in messages if messages.count(message) > 1]
    assert {message.file.package for message in shared} == {"tallystick.operator.v1"}


@pytest.mark.parametrize("spec", SERVICES, ids=service_names())
def test_each_rpc_declares_idempotency_and_access(spec: ServiceSpec) -> None:
    """Reads are NO_SIDE_EFFECTS, all others IDEMPOTENT; the access in the comment is the enforced
    access.
    """
    access = implementation_of(spec).access
    text = (ROOT / "protos" / spec.descriptor.file.name).read_text()
    for method in spec.descriptor.methods:
        level = method.GetOptions().idempotency_level
        reads = method.name.startswith(
            ("Get", "BatchGet", "List", "Watch", "Stream", "Preview", "Explain")
        )
        assert level == (MethodOptions.NO_SIDE_EFFECTS if reads else MethodOptions.IDEMPOTENT), (
            method.full_name
        )
        comment = re.search(rf"((?:\s*//.*\n)+)\s*rpc {method.name}\(", text)
        assert comment is not None, method.full_name
        documented_roles = set(
            re.findall(r"team|payouts|service|operator|auditor", comment[1].partition("Access:")[2])
        )
        allowed = set(map(str, access[method.name]))
        assert documented_roles == allowed, method.full_name


@pytest.mark.parametrize(
    ("enum", "wire"),
    [
        (OrderStatus, payment_pb2.PaymentOrderStatus),
        (PostingKind, ledger_pb2.TransactionKind),
        (EntryKind, wallet_pb2.WalletEntryKind),
        (HoldState, wallet_pb2.HoldState),
        (FailureReason, payment_pb2.FailureReason),
        (PendingReason, payment_pb2.PendingReason),
        (MethodType, payment_pb2.PaymentMethodType),
        (ChargeMode, payment_pb2.ChargeMode),
        (PartialFailurePolicy, payment_pb2.PartialFailurePolicy),
        (DeadLetterState, operator_pb2.DeadLetterState),
        (DeadLetterCause, operator_pb2.DeadLetterCause),
        (AlertKind, operator_pb2.AlertKind),
        (PayoutFailure, payout_pb2.PayoutFailureReason),
        (Interval, payout_pb2.PayoutInterval),
        (Weekday, payout_pb2.Weekday),
        (PayoutState, payout_pb2.PayoutState),
        (TransferMatch, payout_pb2.TransferMatch),
        (PayoutBlocker, payout_pb2.PayoutBlocker),
        (DestinationState, payout_pb2.PayoutDestinationState),
        (BatchState, payout_pb2.PayoutBatchState),
    ],
)
def test_enums_of_the_domain_and_the_contract_are_equal(enum: type[StrEnum], wire: object) -> None:
    """An enum of the rules and its counterpart on the wire list the same values."""
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", wire.DESCRIPTOR.name).upper() + "_"  # type: ignore[attr-defined]
    names = {name.removeprefix(prefix) for name in wire.keys()} - {"UNSPECIFIED"}  # type: ignore[attr-defined]
    assert names == set(enum.__members__) == {str(member) for member in enum}


@pytest.mark.parametrize(
    ("file", "table", "column", "wire"),
    [
        ("shared_tables.py", "dead_letter", "state", operator_pb2.DeadLetterState),
        ("payment/0001_payment.py", "checkout", "charge_mode", payment_pb2.ChargeMode),
        ("payment/0001_payment.py", "payment_order", "status", payment_pb2.PaymentOrderStatus),
        ("payment/0001_payment.py", "unapplied_charge", "cause", payment_pb2.UnappliedCause),
        ("payout/0001_payout.py", "payout", "state", payout_pb2.PayoutState),
        ("payout/0001_payout.py", "payout_batch", "state", payout_pb2.PayoutBatchState),
        ("payout/0001_payout.py", "payout_destination", "state", payout_pb2.PayoutDestinationState),
        ("payout/0001_payout.py", "payout_schedule", "interval", payout_pb2.PayoutInterval),
        ("payout/0001_payout.py", "transfer", "match", payout_pb2.TransferMatch),
        ("wallet/0001_wallet.py", "hold", "purpose", wallet_pb2.HoldPurpose),
        ("wallet/0001_wallet.py", "seller_assignment", "state", wallet_pb2.SellerAssignmentState),
        ("wallet/0001_wallet.py", "wallet_entry", "kind", wallet_pb2.WalletEntryKind),
    ],
)
def test_a_table_allows_the_values_of_the_contract(
    file: str, table: str, column: str, wire: object
) -> None:
    """A column with a list of allowed values has those of its enum on the wire."""
    migrations = ROOT / "storage" / "tallystick_storage" / "migrations"
    definition = (migrations / file).read_text().partition(f"create table {table} (")[2]
    match = re.search(rf"check \({column} in \(([^()]*)\)", definition.partition("\n);")[0])
    assert match is not None
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", wire.DESCRIPTOR.name).upper() + "_"  # type: ignore[attr-defined]
    names = {name.removeprefix(prefix) for name in wire.keys()} - {"UNSPECIFIED"}  # type: ignore[attr-defined]
    assert set(re.findall(r"'(\w+)'", match[1])) == names


def test_outcomes_are_the_contracts() -> None:
    """The provider outcomes of the rules are those of the contract: five for a charge, seven for a
    payout.
    """
    charge_outcomes = {str(TRIGGERS[outcome]) for outcome in get_args(ChargeOutcome)}
    payout_outcomes = {str(PAYOUT_TRIGGERS[outcome]) for outcome in get_args(PayoutOutcome)}
    assert (len(charge_outcomes), len(payout_outcomes)) == (5, 7)
    wire = {name.removeprefix("ATTEMPT_OUTCOME_") for name in history_pb2.AttemptOutcome.keys()}
    assert wire - {"UNSPECIFIED"} == charge_outcomes | payout_outcomes


def test_transition_reasons_are_the_contracts() -> None:
    """The contract has the transition reasons of orders and those of payouts."""
    wire = {name.removeprefix("TRANSITION_REASON_") for name in history_pb2.TransitionReason.keys()}
    assert wire - {"UNSPECIFIED"} == {*PaymentTransitionReason, *PayoutTransitionReason}


FORBIDDEN_PATTERNS = [
    (
        r"\bnow\(\)|gen_random_uuid\(\)|current_timestamp",
        ("storage",),
        "the database's time is clock(), ids are made outside",
    ),
    (r"clock_timestamp\(\)", ("server",), "the database's time is clock()"),
    (r"\bfloat\(|Decimal\(", ("server/tallystick_core", "storage"), "money is whole minor units"),
    (
        r"time\.sleep\(|datetime\.now\(|time\.time\(",
        (
            "server/tallystick_server/payment",
            "server/tallystick_server/ledger",
            "server/tallystick_server/wallet",
            "server/tallystick_server/event",
            "server/tallystick_core",
            "storage",
        ),
        "time is a port",
    ),
    (
        r"^\s*assert ",
        ("server", "storage", "clients/python/tallystick"),
        "checks are errors, not assertions",
    ),
]


@pytest.mark.parametrize(
    ("pattern", "roots", "why"), FORBIDDEN_PATTERNS, ids=[why for _, _, why in FORBIDDEN_PATTERNS]
)
def test_forbidden_source_patterns(pattern: str, roots: tuple[str, ...], why: str) -> None:
    """Style rules that do not depend on the reviewer."""
    for path in source_files(*roots):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not re.search(pattern, line), (
                f"{path.relative_to(ROOT)}:{number}: {why}: {line.strip()}"
            )


def test_the_clock_is_read_in_one_place() -> None:
    """Only clock() calls clock_timestamp()."""
    places = [
        p.relative_to(ROOT).as_posix()
        for p in source_files("storage")
        if "clock_timestamp()" in p.read_text()
    ]
    assert places == ["storage/tallystick_storage/migrations/shared_tables.py"]


def test_meaningless_names_are_not_used() -> None:
    """No module is called utils, helpers, common, misc or base; no class Manager, Helper,
    Processor, Base…, Abstract….
    """
    for path in source_files("server", "storage", "clients/python/tallystick", "benchmarks"):
        assert path.stem not in {
            "utils",
            "util",
            "helpers",
            "helper",
            "common",
            "misc",
            "base",
            "manager",
        }, path
        classes = [
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ClassDef)
        ]
        assert not [
            name
            for name in classes
            if re.search(r"(Manager|Helper|Processor|Util)s?$|^(Base|Abstract)[A-Z]", name)
        ], path


def test_requirements_carry_hashes_and_no_addresses() -> None:
    """Every pinned dependency has hashes, and no line contains a download location."""
    text = (ROOT / "requirements.txt").read_text()
    assert "://" not in text
    pinned = re.findall(r"^[a-z0-9_.-]+==[^\n\\]*(?:\\\n[^\n\\]*)*", text, re.MULTILINE)
    assert len(pinned) > 40
    assert all("--hash=sha256:" in pin for pin in pinned)


def test_update_times_never_decrease() -> None:
    """Update times never decrease, even if a clock steps back: an update_time is set to the greater
    of both times.
    """
    violations = [
        f"{path.name}: {hit}"
        for path in source_files("storage")
        for hit in re.findall(r"update_time = (?!greatest\()\w+", path.read_text())
    ]
    assert violations == []


def test_rows_are_locked_in_an_order_independent_of_collation() -> None:
    """Statements that order by a given text compare it as ids are compared, collate "C". Otherwise
    two statements lock rows in different orders, which depend on the database's locale.
    """
    ordered = re.compile(
        r"\border by ((?:[^()]|\([^()]*\))*?)(?= limit | for update| for share| returning | on "
        r"conflict | offset | union |\)|$)"
    )
    violations = []
    for module in walk_packages(tallystick_storage.__path__, "tallystick_storage."):
        if ".migrations" in module.name:  # only Alembic can import it
            continue
        for name, statement in vars(import_module(module.name)).items():
            if isinstance(statement, Query):
                statement = statement.statement  # noqa: PLW2901
            if not isinstance(statement, Statement):
                continue
            sql = " ".join(statement.split())
            records = re.findall(r"json_to_recordset\([^()]*\([^()]*\)\) as \w+ \(([^()]*)\)", sql)
            lists = re.findall(r"unnest\(((?:cast\([^()]*\)(?:, )?)+)\) as \w+ \(([^()]*)\)", sql)
            text_columns = {
                column.split()[0]
                for record in records
                for column in record.split(",")
                if column.split()[1:] == ["text"]
            }
            for casts, columns in lists:
                types = re.findall(r" as (\w+)\[\]", casts)
                text_columns |= {
                    column.strip()
                    for column, type_ in zip(columns.split(","), types, strict=True)
                    if type_ == "text"
                }
            by = [term.split() for terms in ordered.findall(sql) for term in terms.split(",")]
            violations += [
                f"{module.name}.{name}: {term[0]}"
                for term in by
                if "collate" not in term and term[0].split(".")[-1] in text_columns
            ]
    assert violations == []


def test_due_rows_are_found_by_index() -> None:
    """Statements compare a time with `(select clock())`. A bare `clock()` may change from row to
    row, so PostgreSQL would read every row and use no index.
    """
    violations = [
        f"{path.name}: {hit}"
        for path in source_files("storage")
        for hit in re.findall(r"\w+_time\s*[<>]=?\s*clock\(\)", path.read_text())
    ]
    assert violations == []
