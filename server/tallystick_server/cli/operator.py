"""What an operator does from the command line: a client of the running platform, like any other."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import ModuleType
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick import Client, ClientSettings, TallystickError, UnauthenticatedError
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.recovery.v1 import recovery_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.payout.state import PayoutState
from tallystick_server.app.configuration import Settings
from tallystick_server.app.errors import StartupError
from tallystick_server.rpc.enums import EnumNames

_DEAD_LETTER_STATES = EnumNames(recovery_pb2.DeadLetterState.DESCRIPTOR)
_DEAD_LETTER_MESSAGES: dict[str, ModuleType] = {
    "payment": payment_service_pb2,
    "payout": payout_service_pb2,
}
"""The services that have dead letters, and their messages."""
_ALERT_MESSAGES: dict[str, ModuleType] = {
    **_DEAD_LETTER_MESSAGES,
    "wallet": wallet_service_pb2,
    "ledger": ledger_service_pb2,
}
"""The services that have alerts, and their messages."""
_PAYOUT_STATES = EnumNames(payout_pb2.PayoutState.DESCRIPTOR)
_POLL_INTERVAL_SECONDS = 1.0

CommandHandler = Callable[[argparse.Namespace, Client], Iterable[Message | str]]
"""Gives what is printed: messages as JSON, texts as they are."""
Subparsers = Any  # argparse keeps its type to itself


def add_commands(commands: Subparsers) -> None:
    """The commands for operators."""
    dead_letters = commands.add_parser(
        "dead-letters", help="what waits for a person: list, show, retry, close"
    )
    verbs = dead_letters.add_subparsers(required=True, metavar="VERB")
    command = _add_service_option(
        _add_command(verbs, "list", "newest first", _list_dead_letters, resources="dead letters")
    )
    command.add_argument("--all", action="store_true", help="also those that have ended")
    _add_dead_letter_id(
        _add_command(verbs, "show", "one, with what it is about", _show_dead_letter)
    )
    _add_bulk_options(
        _add_reason_option(
            _add_dead_letter_id(
                _add_command(
                    verbs,
                    "retry",
                    "have one tried again, or all that a filter names",
                    _retry_dead_letters,
                )
            )
        )
    )
    command = _add_bulk_options(
        _add_reason_option(
            _add_dead_letter_id(
                _add_command(
                    verbs,
                    "close",
                    "fail what one is about, or all that a filter names",
                    _close_dead_letters,
                )
            )
        )
    )
    command.add_argument(
        "--evidence", required=True, help="what shows that the provider charged or paid nothing"
    )
    charges = commands.add_parser(
        "unapplied-charges", help="money that fits no order: list, acknowledge"
    )
    verbs = charges.add_subparsers(required=True, metavar="VERB")
    command = _add_command(
        verbs, "list", "newest first", _list_unapplied_charges, resources="unapplied charges"
    )
    command.add_argument("--all", action="store_true", help="also those that were acknowledged")
    command = _add_reason_option(
        _add_command(verbs, "acknowledge", "end its alert; it stays booked", _acknowledge_charge)
    )
    command.add_argument("unapplied_charge_id")
    command = _add_service_option(
        _add_command(
            commands,
            "alerts",
            "what a person should look at, newest first",
            _list_alerts,
            resources="alerts",
        ),
        _ALERT_MESSAGES,
    )
    command.add_argument("--all", action="store_true", help="also those that have ended")
    payouts = commands.add_parser(
        "payouts", help="list, or one payout: show, approve, reject, cancel, acknowledge"
    )
    verbs = payouts.add_subparsers(required=True, metavar="VERB")
    command = _add_command(verbs, "list", "newest first", _list_payouts, resources="payouts")
    command.add_argument(
        "--state",
        choices=[*map(str, PayoutState)],
        default="",
        help="such as AWAITING_APPROVAL; by default any",
    )
    command.add_argument("--seller", default="", help="a seller's account; by default everybody")
    _add_payout_id(
        _add_command(verbs, "show", "it, with every move, attempt and transfer", _show_payout)
    )
    for verb, help_text in (
        ("approve", "as the second person"),
        ("reject", "while it awaits approval"),
        ("cancel", "before it is sent"),
    ):
        _add_reason_option(
            _add_payout_id(
                _add_command(verbs, verb, help_text, _make_decision_handler(verb.capitalize()))
            )
        )
    command = _add_reason_option(
        _add_payout_id(
            _add_command(
                verbs,
                "acknowledge",
                "end the alert about a transfer or report; the money stays booked",
                _acknowledge_payout,
            )
        )
    )
    subject = command.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "--transfer",
        default="",
        metavar="REFERENCE",
        help="the provider_reference of a transfer that fits no move",
    )
    subject.add_argument(
        "--report",
        type=int,
        default=0,
        metavar="NUMBER",
        help="the number of a report that conflicts with an earlier one",
    )
    command = _add_command(
        commands, "payout-batch", "a batch of payouts, with its totals", _show_batch
    )
    command.add_argument("payout_batch_id")
    command.add_argument(
        "--follow", action="store_true", help="again each second, until it is DONE"
    )


def _add_command(
    commands: Subparsers, name: str, help_text: str, handler: CommandHandler, *, resources: str = ""
) -> argparse.ArgumentParser:
    """`resources`: what the command lists, if it may find none."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, epilog="A bearer token is taken from TALLYSTICK_TOKEN."
    )
    command.add_argument(
        "--address", help="where the platform is; by default TALLYSTICK_SERVER__LISTEN"
    )

    def run(options: argparse.Namespace, settings: Settings) -> int:
        address = options.address or settings.server.listen
        token = os.environ.get("TALLYSTICK_TOKEN", "")
        if not all("!" <= character <= "~" for character in token):
            raise StartupError("TALLYSTICK_TOKEN must be visible ASCII characters.")
        message_count = 0
        try:
            with Client(address, settings=ClientSettings(token=token)) as client:
                for message in handler(options, client):
                    print(
                        message
                        if isinstance(message, str)
                        else json.dumps(MessageToDict(message, preserving_proto_field_name=True)),
                        flush=True,
                    )
                    message_count += 1
        except UnauthenticatedError as error:
            raise StartupError(f"{address}: {error} Set TALLYSTICK_TOKEN.") from None
        except TallystickError as error:
            raise StartupError(
                f"{address}: "
                f"{error if error.reason else f'no platform answers there ({error.message})'}"
            ) from None
        if resources and not message_count:
            print(f"No {resources} match.", file=sys.stderr)
        return 0

    command.set_defaults(run=run)
    return command


def _add_service_option(
    command: argparse.ArgumentParser, services: Mapping[str, ModuleType] = _DEAD_LETTER_MESSAGES
) -> argparse.ArgumentParser:
    command.add_argument(
        "--service",
        choices=services,
        default="payment",
        help="of which service; by default payment",
    )
    return command


def _add_dead_letter_id(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("dead_letter_id")
    return _add_service_option(command)


def _add_bulk_options(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that name many dead letters in place of one."""
    (id_argument,) = (action for action in command._actions if action.dest == "dead_letter_id")
    id_argument.nargs, id_argument.required = "?", False
    group = command.add_argument_group("many dead letters, in place of one")
    group.add_argument(
        "--cause", default="", help="only open ones of this cause, such as UNRESOLVED"
    )
    group.add_argument("--provider", default="", help="only open ones of this provider")
    group.add_argument(
        "--from",
        dest="from_time",
        type=_parse_time,
        help="only those made at this time or later, such as 2026-11-28T08:00:00Z",
    )
    group.add_argument(
        "--until", dest="until_time", type=_parse_time, help="only those made before this time"
    )
    group.add_argument("--all", action="store_true", help="every open one")
    group.add_argument(
        "--dry-run", action="store_true", help="count them and name some; change nothing"
    )
    group.add_argument("--json", action="store_true", help="the report as one JSON object")
    return command


def _parse_time(text: str) -> Timestamp:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise argparse.ArgumentTypeError(
            "must be a time with its zone, such as 2026-11-28T08:00:00Z"
        )
    timestamp = Timestamp()
    timestamp.FromDatetime(parsed)
    return timestamp


def _add_payout_id(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("payout_id")
    return command


def _add_reason_option(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--reason", required=True, help="why; it is kept with your name")
    return command


def _call_service(options: argparse.Namespace, client: Client, method: str, **values: Any) -> Any:
    """The answer of the service that was named."""
    request = getattr(_DEAD_LETTER_MESSAGES[options.service], f"{method}Request")(**values)
    return getattr(getattr(client, options.service), method)(request)


def _list_dead_letters(options: argparse.Namespace, client: Client) -> Iterable[Message]:
    request = _DEAD_LETTER_MESSAGES[options.service].ListDeadLettersRequest(
        state=_DEAD_LETTER_STATES.number("" if options.all else "OPEN"), page_size=200
    )
    return client.pages(getattr(client, options.service).ListDeadLetters, request, "dead_letters")


def _show_dead_letter(options: argparse.Namespace, client: Client) -> list[Message]:
    return [_call_service(options, client, "GetDeadLetter", dead_letter_id=options.dead_letter_id)]


def _retry_dead_letters(options: argparse.Namespace, client: Client) -> Iterable[Message | str]:
    if _is_bulk(options):
        return _run_bulk(options, client, "RetryDeadLetters", ("retried",))
    return [
        _call_service(
            options,
            client,
            "RetryDeadLetter",
            dead_letter_id=options.dead_letter_id,
            reason=options.reason,
        )
    ]


def _close_dead_letters(options: argparse.Namespace, client: Client) -> Iterable[Message | str]:
    if _is_bulk(options):
        return _run_bulk(
            options, client, "CloseDeadLetters", ("closed", "resolved"), evidence=options.evidence
        )
    values = {
        "dead_letter_id": options.dead_letter_id,
        "reason": options.reason,
        "evidence": options.evidence,
    }
    return [_call_service(options, client, "CloseDeadLetter", **values)]


def _is_bulk(options: argparse.Namespace) -> bool:
    """Whether many dead letters are named."""
    is_bulk = bool(
        options.cause or options.provider or options.from_time or options.until_time or options.all
    )
    if is_bulk == bool(options.dead_letter_id):
        raise StartupError(
            "Give either a dead letter's id, or a filter: --cause, --provider, --from, --until, "
            "or --all."
        )
    if options.dead_letter_id and (options.dry_run or options.json):
        raise StartupError("--dry-run and --json go with a filter, not with a dead letter's id.")
    return is_bulk


def _run_bulk(
    options: argparse.Namespace,
    client: Client,
    method: str,
    counters: tuple[str, ...],
    **values: str,
) -> Iterable[str]:
    """Calls page by page until there are no more, with progress on stderr; the report."""
    dead_letter_filter = recovery_pb2.DeadLetterFilter(
        cause=options.cause,
        provider=options.provider,
        from_time=options.from_time,
        until_time=options.until_time,
    )
    values = {"filter": dead_letter_filter, "all": options.all, "reason": options.reason, **values}  # type: ignore[dict-item]
    preview = _call_service(options, client, method, dry_run=True, **values)
    report: dict[str, Any] = {
        "matched": preview.matched,
        **dict.fromkeys(counters, 0),
        "skipped": [],
    }
    report["counts"] = [
        {"cause": item.cause, "provider": item.provider, "count": item.count}
        for item in preview.counts
    ]
    if options.dry_run:
        report |= {"dry_run": True, "sample": list(preview.sample)}
        return [_format_report(report, counters, as_json=options.json)]
    token, processed_count = "", 0
    while True:
        page = _call_service(options, client, method, page_token=token, **values)
        processed_count += page.matched
        for counter in counters:
            report[counter] += getattr(page, counter)
        report["skipped"] += [
            MessageToDict(item, preserving_proto_field_name=True) for item in page.skipped
        ]
        print(
            f"{processed_count} of {preview.matched}: {_format_counts(report, counters)}",
            file=sys.stderr,
            flush=True,
        )
        token = page.next_page_token
        if not token:
            return [_format_report(report, counters, as_json=options.json)]


def _format_counts(report: Mapping[str, Any], counters: tuple[str, ...]) -> str:
    return ", ".join(
        [
            *(f"{report[counter]} {counter}" for counter in counters),
            f"{len(report['skipped'])} skipped",
        ]
    )


def _format_report(report: Mapping[str, Any], counters: tuple[str, ...], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(report)
    lines = [
        f"{report['matched']} matched; nothing was changed"
        if report.get("dry_run")
        else f"{report['matched']} matched: {_format_counts(report, counters)}"
    ]
    lines += [
        f"  {item['count']} {item['cause']} of {item['provider']}" for item in report["counts"]
    ]
    lines += [f"  {id_}" for id_ in report.get("sample", ())]
    lines += [
        (
            f"  skipped {item['dead_letter_id']} ({item['cause']}): {item['error_reason']}: "
            f"{item['message']}"
        )
        for item in report["skipped"]
    ]
    return "\n".join(lines)


def _list_unapplied_charges(options: argparse.Namespace, client: Client) -> Iterable[Message]:
    request = payment_service_pb2.ListUnappliedChargesRequest(
        acknowledged=options.all, page_size=200
    )
    return client.pages(client.payment.ListUnappliedCharges, request, "unapplied_charges")


def _acknowledge_charge(options: argparse.Namespace, client: Client) -> list[Message]:
    request = payment_service_pb2.AcknowledgeUnappliedChargeRequest(
        unapplied_charge_id=options.unapplied_charge_id, reason=options.reason
    )
    return [client.payment.AcknowledgeUnappliedCharge(request).unapplied_charge]


def _list_alerts(options: argparse.Namespace, client: Client) -> Iterable[Message]:
    request = _ALERT_MESSAGES[options.service].ListAlertsRequest(ended=options.all, page_size=200)
    return client.pages(getattr(client, options.service).ListAlerts, request, "alerts")


def _list_payouts(options: argparse.Namespace, client: Client) -> Iterable[Message]:
    request = payout_service_pb2.ListPayoutsRequest(
        payout_state=_PAYOUT_STATES.number(options.state),
        seller_account=options.seller,
        page_size=200,
    )
    return client.pages(client.payout.ListPayouts, request, "payouts")


def _show_payout(options: argparse.Namespace, client: Client) -> list[Message]:
    return [
        client.payout.GetPayout(payout_service_pb2.GetPayoutRequest(payout_id=options.payout_id))
    ]


def _make_decision_handler(verb: str) -> CommandHandler:
    def handle(options: argparse.Namespace, client: Client) -> list[Message]:
        request = getattr(payout_service_pb2, f"{verb}PayoutRequest")(
            payout_id=options.payout_id, reason=options.reason
        )
        return [getattr(client.payout, f"{verb}Payout")(request).payout]

    return handle


def _acknowledge_payout(options: argparse.Namespace, client: Client) -> list[Message]:
    request = payout_service_pb2.AcknowledgePayoutRequest(
        payout_id=options.payout_id, reason=options.reason
    )
    if options.report:
        request.report_number = options.report
    else:
        request.provider_reference = options.transfer
    return [client.payout.AcknowledgePayout(request).payout]


def _show_batch(options: argparse.Namespace, client: Client) -> Iterable[Message]:
    request = payout_service_pb2.GetPayoutBatchRequest(
        payout_batch_id=options.payout_batch_id, page_size=1
    )
    while True:
        batch = client.payout.GetPayoutBatch(request).payout_batch
        yield batch
        if not options.follow or batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE:
            return
        time.sleep(_POLL_INTERVAL_SECONDS)
