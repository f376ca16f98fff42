"""The commands for dead letters: list, show, retry and close."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tallystick_core.operations.dead_letter import DeadLetterCause
from tallystick_server.cli.operator.connection import connect
from tallystick_server.cli.operator.options import (
    AddressOption,
    DeadLetterService,
    JsonOption,
    ReasonOption,
)
from tallystick_server.cli.operator.printing import column, print_listing, print_message
from tallystick_server.cli.output import (
    escape,
    print_heading,
    print_json,
    print_line,
    print_status,
    print_table,
    show_progress,
)
from tallystick_server.cli.runner import PanelGroup, UsageError, example

if TYPE_CHECKING:
    from tallystick_server.cli.operator.calls import BulkReport, DeadLetterFilter

_BULK_PANEL = "Many dead letters, instead of one"

group = typer.Typer(
    cls=PanelGroup, help="List, show, retry and close operations that require an operator."
)


def _parse_time(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise ValueError(f"{text!r} is not a time with a time zone, such as 2026-11-28T08:00:00Z.")
    return parsed


DeadLetterServiceOption = Annotated[
    DeadLetterService, typer.Option("--service", help="The service that owns the dead letters.")
]
EvidenceOption = Annotated[
    str,
    typer.Option(
        "--evidence",
        help="Evidence that the provider charged or paid nothing.",
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
CauseOption = Annotated[
    DeadLetterCause | None,
    typer.Option(
        "--cause",
        help="Only dead letters with this cause.",
        show_default=False,
        rich_help_panel=_BULK_PANEL,
    ),
]
ProviderOption = Annotated[
    str,
    typer.Option(
        "--provider",
        help="Only dead letters of this provider.",
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
        help="Only dead letters created at this time or later, such as 2026-11-28T08:00:00Z.",
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
        help="Only dead letters created before this time.",
        show_default=False,
        rich_help_panel=_BULK_PANEL,
    ),
]
AllOption = Annotated[
    bool, typer.Option("--all", help="All open dead letters.", rich_help_panel=_BULK_PANEL)
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Count the dead letters and name the first 20. Change nothing.",
        rich_help_panel=_BULK_PANEL,
    ),
]


@group.command(
    "list",
    epilog=example("tallystick dead-letters list --service payout --json"),
)
def list_dead_letters(
    ctx: typer.Context,
    service: DeadLetterServiceOption = "payment",
    include_ended: Annotated[
        bool, typer.Option("--all", help="Include dead letters that are no longer open.")
    ] = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """List open dead letters, newest first."""
    columns = ["dead_letter_id", "cause", "provider", "tries", "create_time", "detail"]
    if include_ended:
        columns[1:1] = ["state"]
    adjective = "" if include_ended else "open "
    with connect(ctx, address) as calls:
        found = calls.list_dead_letters(service, include_ended=include_ended)
        none = f"No {adjective}dead letters in the {service} service."
        print_listing(found, columns, none, as_json=as_json)


@group.command("show", epilog=example("tallystick dead-letters show charges-o-order-1-1"))
def show_dead_letter(
    ctx: typer.Context,
    dead_letter_id: DeadLetterIdArgument,
    service: DeadLetterServiceOption = "payment",
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a dead letter and the charge, payout or destination it belongs to."""
    with connect(ctx, address) as calls:
        print_message(calls.show_dead_letter(service, dead_letter_id), as_json=as_json)


@group.command(
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
    with connect(ctx, address) as calls:
        if selection is None:
            retried = calls.retry_dead_letter(service, dead_letter_id, reason)
            print_message(retried, as_json=as_json)
            return
        reports = calls.retry_dead_letters(service, selection, reason, dry_run=dry_run)
        _print_bulk("Retrying", reports, service, as_json=as_json)


@group.command(
    "close",
    epilog=example(
        "tallystick dead-letters close charges-o-order-1-1 --reason rejected "
        '--evidence "ticket 4711"',
        'tallystick dead-letters close --all --reason rejected --evidence "ticket 4711" --dry-run',
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
    with connect(ctx, address) as calls:
        if selection is None:
            closed = calls.close_dead_letter(service, dead_letter_id, reason, evidence)
            print_message(closed, as_json=as_json)
            return
        reports = calls.close_dead_letters(service, selection, reason, evidence, dry_run=dry_run)
        _print_bulk("Closing", reports, service, as_json=as_json)


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
    from tallystick_server.cli.operator.calls import DeadLetterFilter

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
                [column(name) for name in field_names],
                (to_row(item, field_names) for item in items),
            )
    if report.sample:
        print_line()
        print_heading("first dead letters")
        for dead_letter_id in report.sample:
            print_line(f"  {escape(dead_letter_id)}")
