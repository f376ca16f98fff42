"""The operator commands: dead letters, alerts, unapplied charges, payouts and payout batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tallystick_core.operations.dead_letter import DeadLetterCause
from tallystick_core.payout.state import PayoutState
from tallystick_server.cli.output import (
    Column,
    escape,
    print_fields,
    print_heading,
    print_json,
    print_line,
    print_status,
    print_table,
    show_progress,
)
from tallystick_server.cli.runner import PanelGroup, UsageError, load_settings, whole_number

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tallystick_server.cli.operator_calls import BulkReport, DeadLetterFilter, OperatorCalls

PANEL = "Operate a running platform (TALLYSTICK_TOKEN holds the bearer token)"
_BULK_PANEL = "Many dead letters, instead of one"
_ALIGNED_RIGHT = frozenset({"count", "fee", "number", "tries", "version"})
_WRAPPED = frozenset({"detail", "message", "reason", "acknowledge_reason"})

dead_letters = typer.Typer(
    cls=PanelGroup, help="List, show, retry and close operations that require an operator."
)
unapplied_charges = typer.Typer(
    cls=PanelGroup, help="List and acknowledge charges that match no order."
)
payouts = typer.Typer(
    cls=PanelGroup, help="List, show, approve, reject, cancel and acknowledge payouts."
)


def _parse_time(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise ValueError(f"{text!r} is not a time with a time zone, such as 2026-11-28T08:00:00Z.")
    return parsed


DeadLetterService = Literal["payment", "payout"]
AlertService = Literal["payment", "payout", "wallet", "ledger"]

DeadLetterServiceOption = Annotated[
    DeadLetterService, typer.Option("--service", help="The service that owns the dead letters.")
]
AddressOption = Annotated[
    str,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="Address of the platform. By default the setting TALLYSTICK_SERVER__LISTEN.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
ReasonOption = Annotated[
    str, typer.Option("--reason", help="Why. It is stored with your name.", show_default=False)
]
EvidenceOption = Annotated[
    str,
    typer.Option(
        "--evidence",
        help="What proves that the provider charged or paid nothing.",
        show_default=False,
    ),
]
DeadLetterIdArgument = Annotated[
    str, typer.Argument(metavar="DEAD_LETTER_ID", help="As 'dead-letters list' prints it.")
]
OptionalDeadLetterIdArgument = Annotated[
    str,
    typer.Argument(
        metavar="DEAD_LETTER_ID", help="As 'dead-letters list' prints it.", show_default=False
    ),
]
PayoutIdArgument = Annotated[
    str, typer.Argument(metavar="PAYOUT_ID", help="As 'payouts list' prints it.")
]
CauseOption = Annotated[
    DeadLetterCause | None,
    typer.Option(
        "--cause",
        help="Only open ones with this cause.",
        show_default=False,
        rich_help_panel=_BULK_PANEL,
    ),
]
ProviderOption = Annotated[
    str,
    typer.Option(
        "--provider",
        help="Only open ones of this provider.",
        show_default=False,
        rich_help_panel=_BULK_PANEL,
    ),
]
FromOption = Annotated[
    datetime | None,
    typer.Option(
        "--from",
        parser=_parse_time,
        metavar="TIME",
        help="Only those created at this time or later, such as 2026-11-28T08:00:00Z.",
        show_default=False,
        rich_help_panel=_BULK_PANEL,
    ),
]
UntilOption = Annotated[
    datetime | None,
    typer.Option(
        "--until",
        parser=_parse_time,
        metavar="TIME",
        help="Only those created before this time.",
        show_default=False,
        rich_help_panel=_BULK_PANEL,
    ),
]
AllOption = Annotated[
    bool, typer.Option("--all", help="Every open one.", rich_help_panel=_BULK_PANEL)
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Count them and name the first 20. Change nothing.",
        rich_help_panel=_BULK_PANEL,
    ),
]


def example(*lines: str) -> str:
    """The examples of a command, for the end of its help."""
    return "\n".join(
        ["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)]
    )


def add_commands(app: typer.Typer) -> None:
    """Adds the commands for operators."""
    for name, group in (
        ("dead-letters", dead_letters),
        ("unapplied-charges", unapplied_charges),
        ("payouts", payouts),
    ):
        app.add_typer(group, name=name, rich_help_panel=PANEL)
    app.command(
        "alerts", rich_help_panel=PANEL, epilog=example("tallystick alerts --service payout")
    )(list_alerts)
    app.command(
        "payout-batch",
        rich_help_panel=PANEL,
        epilog=example("tallystick payout-batch run-EUR-20261128T1500Z --follow"),
    )(show_batch)


@dead_letters.command(
    "list",
    epilog=example("tallystick dead-letters list --service payout --json"),
)
def list_dead_letters(
    ctx: typer.Context,
    service: DeadLetterServiceOption = "payment",
    include_ended: Annotated[
        bool, typer.Option("--all", help="Include those that are not open any more.")
    ] = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """List open dead letters, newest first."""
    columns = ["dead_letter_id", "cause", "provider", "tries", "create_time", "detail"]
    if include_ended:
        columns[1:1] = ["state"]
    adjective = "" if include_ended else "open "
    with _connect(ctx, address) as calls:
        found = calls.list_dead_letters(service, include_ended=include_ended)
        none = f"No {adjective}dead letters in the {service} service."
        _print_listing(found, columns, none, as_json=as_json)


@dead_letters.command("show", epilog=example("tallystick dead-letters show charges-o-order-1-1"))
def show_dead_letter(
    ctx: typer.Context,
    dead_letter_id: DeadLetterIdArgument,
    service: DeadLetterServiceOption = "payment",
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a dead letter and the charge, payout or destination it belongs to."""
    with _connect(ctx, address) as calls:
        _print_message(calls.show_dead_letter(service, dead_letter_id), as_json=as_json)


@dead_letters.command(
    "retry",
    epilog=example(
        'tallystick dead-letters retry charges-o-order-1-1 --reason "provider fixed"',
        'tallystick dead-letters retry --cause REJECTED --reason "provider fixed" --dry-run',
    ),
)
def retry_dead_letters(
    ctx: typer.Context,
    reason: ReasonOption,
    dead_letter_id: OptionalDeadLetterIdArgument = "",
    service: DeadLetterServiceOption = "payment",
    cause: CauseOption = None,
    provider: ProviderOption = "",
    from_time: FromOption = None,
    until_time: UntilOption = None,
    select_all: AllOption = False,
    dry_run: DryRunOption = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Retry one dead letter, or all open ones that match a filter."""
    selection = _select(
        ctx, dead_letter_id, cause, provider, from_time, until_time, select_all, dry_run=dry_run
    )
    with _connect(ctx, address) as calls:
        if selection is None:
            retried = calls.retry_dead_letter(service, dead_letter_id, reason)
            _print_message(retried, as_json=as_json)
            return
        reports = calls.retry_dead_letters(service, selection, reason, dry_run=dry_run)
        _print_bulk("Retrying", reports, service, as_json=as_json)


@dead_letters.command(
    "close",
    epilog=example(
        "tallystick dead-letters close charges-o-order-1-1 --reason refused "
        '--evidence "ticket 4711"',
        'tallystick dead-letters close --all --reason refused --evidence "ticket 4711" --dry-run',
    ),
)
def close_dead_letters(
    ctx: typer.Context,
    reason: ReasonOption,
    evidence: EvidenceOption,
    dead_letter_id: OptionalDeadLetterIdArgument = "",
    service: DeadLetterServiceOption = "payment",
    cause: CauseOption = None,
    provider: ProviderOption = "",
    from_time: FromOption = None,
    until_time: UntilOption = None,
    select_all: AllOption = False,
    dry_run: DryRunOption = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Close one dead letter, or all open ones that match a filter.

    Marks the failed charge or payout as FAILED.
    """
    selection = _select(
        ctx, dead_letter_id, cause, provider, from_time, until_time, select_all, dry_run=dry_run
    )
    with _connect(ctx, address) as calls:
        if selection is None:
            closed = calls.close_dead_letter(service, dead_letter_id, reason, evidence)
            _print_message(closed, as_json=as_json)
            return
        reports = calls.close_dead_letters(service, selection, reason, evidence, dry_run=dry_run)
        _print_bulk("Closing", reports, service, as_json=as_json)


@unapplied_charges.command("list", epilog=example("tallystick unapplied-charges list --all --json"))
def list_unapplied_charges(
    ctx: typer.Context,
    include_acknowledged: Annotated[
        bool, typer.Option("--all", help="Include acknowledged ones.")
    ] = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """List unapplied charges that nobody has acknowledged, newest first."""
    columns = ["unapplied_charge_id", "cause", "charge_id", "amount", "currency", "create_time"]
    if include_acknowledged:
        columns += ["acknowledged_by", "acknowledge_reason"]
    none = (
        "No unapplied charges." if include_acknowledged else "No unapplied charges to acknowledge."
    )
    with _connect(ctx, address) as calls:
        found = calls.list_unapplied_charges(include_acknowledged=include_acknowledged)
        _print_listing(found, columns, none, as_json=as_json)


@unapplied_charges.command(
    "acknowledge",
    epilog=example(
        "tallystick unapplied-charges acknowledge UNAPPLIED_CHARGE_ID --reason refunded"
    ),
)
def acknowledge_unapplied_charge(
    ctx: typer.Context,
    unapplied_charge_id: Annotated[
        str,
        typer.Argument(
            metavar="UNAPPLIED_CHARGE_ID", help="As 'unapplied-charges list' prints it."
        ),
    ],
    reason: ReasonOption,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Acknowledge an unapplied charge.

    Ends its alert. The charge stays booked.
    """
    with _connect(ctx, address) as calls:
        _print_message(
            calls.acknowledge_unapplied_charge(unapplied_charge_id, reason), as_json=as_json
        )


def list_alerts(
    ctx: typer.Context,
    service: Annotated[
        AlertService, typer.Option("--service", help="The service that raised the alerts.")
    ] = "payment",
    include_ended: Annotated[
        bool, typer.Option("--all", help="Include those that have ended.")
    ] = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """List active alerts, newest first."""
    columns = ["kind", "resource_name", "create_time", "detail"]
    if include_ended:
        columns[3:3] = ["end_time"]
    adjective = "" if include_ended else "active "
    with _connect(ctx, address) as calls:
        found = calls.list_alerts(service, include_ended=include_ended)
        none = f"No {adjective}alerts in the {service} service."
        _print_listing(found, columns, none, as_json=as_json)


@payouts.command("list", epilog=example("tallystick payouts list --state AWAITING_APPROVAL"))
def list_payouts(
    ctx: typer.Context,
    state: Annotated[
        PayoutState | None,
        typer.Option("--state", help="Only payouts in this state.", show_default=False),
    ] = None,
    seller_account: Annotated[
        str,
        typer.Option(
            "--seller",
            metavar="ACCOUNT",
            help="Only payouts to this seller account.",
            show_default=False,
        ),
    ] = "",
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """List payouts, newest first."""
    columns = ["payout_id", "payout_state", "seller_account", "amount", "currency", "create_time"]
    none = "No payouts"
    if state:
        none += f" in the state {state}"
    if seller_account:
        none += f" for the seller {seller_account}"
    with _connect(ctx, address) as calls:
        found = calls.list_payouts(str(state or ""), seller_account)
        _print_listing(found, columns, f"{none}.", as_json=as_json)


@payouts.command("show", epilog=example("tallystick payouts show payout-1"))
def show_payout(
    ctx: typer.Context,
    payout_id: PayoutIdArgument,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a payout with its history, attempts and transfers."""
    with _connect(ctx, address) as calls:
        _print_message(calls.show_payout(payout_id), as_json=as_json)


def _add_decision(name: str, method: str, help_text: str, example_reason: str) -> None:
    """Adds the command of a call that decides on one payout."""

    def decide(
        ctx: typer.Context,
        payout_id: PayoutIdArgument,
        reason: ReasonOption,
        address: AddressOption = "",
        as_json: JsonOption = False,
    ) -> None:
        with _connect(ctx, address) as calls:
            _print_message(calls.decide_payout(method, payout_id, reason), as_json=as_json)

    epilog = example(f'tallystick payouts {name} payout-1 --reason "{example_reason}"')
    payouts.command(name, help=help_text, epilog=epilog)(decide)


_add_decision(
    "approve",
    "ApprovePayout",
    "Approve a payout that awaits approval, as the second person.",
    "seller verified",
)
_add_decision("reject", "RejectPayout", "Reject a payout that awaits approval.", "seller suspended")
_add_decision("cancel", "CancelPayout", "Cancel a payout that has not been sent.", "wrong amount")


@payouts.command(
    "acknowledge",
    epilog=example(
        "tallystick payouts acknowledge payout-1 --transfer tr_123 --reason returned",
        "tallystick payouts acknowledge payout-1 --report 1 --reason checked",
    ),
)
def acknowledge_payout(
    ctx: typer.Context,
    payout_id: PayoutIdArgument,
    reason: ReasonOption,
    transfer: Annotated[
        str,
        typer.Option(
            "--transfer",
            metavar="REFERENCE",
            help="The provider_reference of an unmatched transfer.",
            show_default=False,
        ),
    ] = "",
    report: Annotated[
        int | None,
        typer.Option(
            "--report",
            parser=whole_number(1, 2**31 - 1),
            metavar="NUMBER",
            help="The number of a conflicting provider report.",
            show_default=False,
        ),
    ] = None,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Acknowledge an unmatched transfer or a conflicting report.

    Ends its alert. The money stays booked.
    """
    if bool(transfer) == (report is not None):
        raise UsageError(ctx, "Give either --transfer REFERENCE or --report NUMBER.")
    with _connect(ctx, address) as calls:
        acknowledged = calls.acknowledge_payout(payout_id, reason, transfer=transfer, report=report)
        _print_message(acknowledged, as_json=as_json)


def show_batch(
    ctx: typer.Context,
    payout_batch_id: Annotated[
        str, typer.Argument(metavar="PAYOUT_BATCH_ID", help="The id of a batch or a payout run.")
    ],
    follow: Annotated[
        bool, typer.Option("--follow", help="Refresh each second until the batch is DONE.")
    ] = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a payout batch and its totals."""
    with _connect(ctx, address) as calls:
        batches = calls.watch_batch(payout_batch_id, follow=follow)
        if as_json:
            _print_listing(batches, [], "", as_json=True)
            return
        batch = next(batches)
        if follow:
            with show_progress("Generating payouts", batch.item_count) as update:
                update(batch.generated_count, f"{batch.rejected_count} rejected")
                for batch in batches:
                    update(batch.generated_count, f"{batch.rejected_count} rejected")
        _print_message(batch, as_json=False)


@contextmanager
def _connect(ctx: typer.Context, address: str) -> Iterator[OperatorCalls]:
    from tallystick_server.cli.operator_calls import connect

    settings = load_settings(ctx.obj)
    with connect(address or settings.server.listen) as calls:
        yield calls


def _select(
    ctx: typer.Context,
    dead_letter_id: str,
    cause: DeadLetterCause | None,
    provider: str,
    from_time: datetime | None,
    until_time: datetime | None,
    select_all: bool,
    *,
    dry_run: bool,
) -> DeadLetterFilter | None:
    """The filter of a bulk command, or None for one dead letter."""
    from tallystick_server.cli.operator_calls import DeadLetterFilter

    has_criterion = bool(cause or provider or from_time or until_time)
    if dead_letter_id and (has_criterion or select_all):
        raise UsageError(ctx, "Give either a DEAD_LETTER_ID or a filter, not both.")
    if dead_letter_id and dry_run:
        raise UsageError(ctx, "--dry-run needs a filter instead of a DEAD_LETTER_ID.")
    if has_criterion and select_all:
        raise UsageError(
            ctx, "--all cannot be combined with --cause, --provider, --from or --until."
        )
    if not (dead_letter_id or has_criterion or select_all):
        raise UsageError(
            ctx,
            "Give a DEAD_LETTER_ID, or a filter: --cause, --provider, --from, --until or --all.",
        )
    if dead_letter_id:
        return None
    return DeadLetterFilter(cause, provider, from_time, until_time, select_all)


def _print_listing(
    found: Iterable[Message], field_names: Sequence[str], none: str, *, as_json: bool
) -> None:
    """Prints messages as a table of some fields, or with `as_json` whole. `none` is printed on
    standard error if there are no messages.
    """
    from tallystick_server.cli.messages import to_json, to_row

    if as_json:
        for message in found:
            print_json(to_json(message))
        return
    columns = [_column(name) for name in field_names]
    if not print_table(columns, (to_row(message, field_names) for message in found)):
        print_status(none)


def _print_message(message: Message, *, as_json: bool) -> None:
    from tallystick_server.cli.messages import to_json, to_record

    if as_json:
        print_json(to_json(message))
        return
    record = to_record(message)
    print_fields(record.fields)
    for table in record.tables:
        print_line()
        print_heading(table.title)
        print_table([_column(heading) for heading in table.headings], table.rows)


def _column(field_name: str) -> Column:
    is_amount = field_name.endswith(("amount", "_count")) or field_name in _ALIGNED_RIGHT
    return Column(field_name.upper(), align_right=is_amount, can_wrap=field_name in _WRAPPED)


def _print_bulk(
    activity: str, reports: Iterator[BulkReport], service: str, *, as_json: bool
) -> None:
    from tallystick_server.cli.messages import to_json

    report = next(reports)
    if not report.dry_run and report.matched:
        with show_progress(f"{activity} dead letters", report.matched) as update:
            for page_report in reports:
                update(page_report.processed, _format_outcomes(page_report))
    elif not report.dry_run:
        for _ in reports:
            pass
    if not as_json:
        _print_bulk_report(report, service)
        return
    values: dict[str, Any] = {
        "dry_run": report.dry_run,
        "matched": report.matched,
        **report.changed,
        "skipped": [to_json(item) for item in report.skipped],
        "counts": [{**to_json(item), "count": item.count} for item in report.counts],
        "sample": report.sample,
    }
    print_json(values)


def _format_outcomes(report: BulkReport) -> str:
    outcomes = {**report.changed, "skipped": len(report.skipped)}
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())


def _print_bulk_report(report: BulkReport, service: str) -> None:
    from tallystick_server.cli.messages import to_row

    if not report.matched:
        print_status(f"No open dead letters in the {service} service match.")
        return
    result = "nothing was changed" if report.dry_run else _format_outcomes(report)
    print_line(f"{report.matched} matched: {result}")
    for title, field_names, items in (
        ("matched", ["cause", "provider", "count"], report.counts),
        ("skipped", ["dead_letter_id", "cause", "error_reason", "message"], report.skipped),
    ):
        if items:
            print_line()
            print_heading(title)
            print_table(
                [_column(name) for name in field_names],
                (to_row(item, field_names) for item in items),
            )
    if report.sample:
        print_line()
        print_heading("first dead letters")
        for dead_letter_id in report.sample:
            print_line(f"  {escape(dead_letter_id)}")
