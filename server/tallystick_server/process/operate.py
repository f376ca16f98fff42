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
from tallystick_core.payout import PayoutState
from tallystick_server.process.configuration import Settings
from tallystick_server.process.failure import Failure
from tallystick_server.runtime.fields import EnumNames

_STATES = EnumNames(recovery_pb2.DeadLetterState.DESCRIPTOR)
_WITH_DEAD_LETTERS: dict[str, ModuleType] = {"payment": payment_service_pb2, "payout": payout_service_pb2}
"""The services that have dead letters, and their messages."""
_WITH_ALERTS: dict[str, ModuleType] = {**_WITH_DEAD_LETTERS, "wallet": wallet_service_pb2, "ledger": ledger_service_pb2}
"""The services that have alerts, and their messages."""
_PAYOUT_STATES = EnumNames(payout_pb2.PayoutState.DESCRIPTOR)
_LOOK_AGAIN = 1.0

Work = Callable[[argparse.Namespace, Client], Iterable[Message | str]]
"""Gives what is printed: messages as JSON, texts as they are."""
Commands = Any  # argparse keeps its type to itself


def add_commands(commands: Commands) -> None:
    """The commands for operators."""
    letters = commands.add_parser("dead-letters", help="what waits for a person: list, show, retry, close")
    verbs = letters.add_subparsers(required=True, metavar="VERB")
    one = _of_service(_command(verbs, "list", "newest first", _list, lists="dead letters"))
    one.add_argument("--all", action="store_true", help="also those that have ended")
    _letter(_command(verbs, "show", "one, with what it is about", _show))
    _many(_reason(_letter(_command(verbs, "retry", "have one tried again, or all that a filter names", _retry))))
    one = _many(_reason(_letter(_command(verbs, "close", "fail what one is about, or all that a filter names", _close))))
    one.add_argument("--evidence", required=True, help="what shows that the provider charged or paid nothing")
    charges = commands.add_parser("unapplied-charges", help="money that fits no order: list, acknowledge")
    verbs = charges.add_subparsers(required=True, metavar="VERB")
    one = _command(verbs, "list", "newest first", _unapplied, lists="unapplied charges")
    one.add_argument("--all", action="store_true", help="also those that were acknowledged")
    one = _reason(_command(verbs, "acknowledge", "end its alert; it stays booked", _acknowledge_charge))
    one.add_argument("unapplied_charge_id")
    one = _of_service(_command(commands, "alerts", "what a person should look at, newest first", _alerts, lists="alerts"), _WITH_ALERTS)
    one.add_argument("--all", action="store_true", help="also those that have ended")
    payouts = commands.add_parser("payouts", help="list, or one payout: show, approve, reject, cancel, acknowledge")
    verbs = payouts.add_subparsers(required=True, metavar="VERB")
    one = _command(verbs, "list", "newest first", _list_payouts, lists="payouts")
    one.add_argument("--state", choices=[*map(str, PayoutState)], default="", help="such as AWAITING_APPROVAL; by default any")
    one.add_argument("--seller", default="", help="a seller's account; by default everybody")
    _payout(_command(verbs, "show", "it, with every move, attempt and transfer", _show_payout))
    for verb, about in (("approve", "as the second person"), ("reject", "while it awaits approval"), ("cancel", "before it is sent")):
        _reason(_payout(_command(verbs, verb, about, _decide(verb.capitalize()))))
    one = _reason(_payout(_command(verbs, "acknowledge", "end the alert about a transfer or report; the money stays booked", _acknowledge_payout)))
    subject = one.add_mutually_exclusive_group(required=True)
    subject.add_argument("--transfer", default="", metavar="REFERENCE", help="the provider_reference of a transfer that fits no move")
    subject.add_argument("--report", type=int, default=0, metavar="NUMBER", help="the number of a report that conflicts with an earlier one")
    one = _command(commands, "payout-batch", "a batch of payouts, with its totals", _batch)
    one.add_argument("payout_batch_id")
    one.add_argument("--follow", action="store_true", help="again each second, until it is DONE")


def _command(commands: Commands, name: str, about: str, work: Work, *, lists: str = "") -> argparse.ArgumentParser:
    """`lists`: what the command lists, if it may find none."""
    one: argparse.ArgumentParser = commands.add_parser(name, help=about, epilog="A bearer token is taken from TALLYSTICK_TOKEN.")
    one.add_argument("--address", help="where the platform is; by default TALLYSTICK_LISTEN")

    def run(options: argparse.Namespace, settings: Settings) -> int:
        address = options.address or settings.listen
        token = os.environ.get("TALLYSTICK_TOKEN", "")
        if not all("!" <= sign <= "~" for sign in token):
            raise Failure("TALLYSTICK_TOKEN must be visible ASCII characters.")
        shown = 0
        try:
            with Client(address, settings=ClientSettings(token=token)) as client:
                for message in work(options, client):
                    print(message if isinstance(message, str) else json.dumps(MessageToDict(message, preserving_proto_field_name=True)), flush=True)
                    shown += 1
        except UnauthenticatedError as error:
            raise Failure(f"{address}: {error} Set TALLYSTICK_TOKEN.") from None
        except TallystickError as error:
            raise Failure(f"{address}: {error if error.reason else f'no platform answers there ({error.message})'}") from None
        if lists and not shown:
            print(f"No {lists} match.", file=sys.stderr)
        return 0

    one.set_defaults(run=run)
    return one


def _of_service(one: argparse.ArgumentParser, services: Mapping[str, ModuleType] = _WITH_DEAD_LETTERS) -> argparse.ArgumentParser:
    one.add_argument("--service", choices=services, default="payment", help="of which service; by default payment")
    return one


def _letter(one: argparse.ArgumentParser) -> argparse.ArgumentParser:
    one.add_argument("dead_letter_id")
    return _of_service(one)


def _many(one: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that name many dead letters in place of one."""
    (letter,) = (action for action in one._actions if action.dest == "dead_letter_id")
    letter.nargs, letter.required = "?", False
    which = one.add_argument_group("many dead letters, in place of one")
    which.add_argument("--cause", default="", help="only open ones of this cause, such as UNRESOLVED")
    which.add_argument("--provider", default="", help="only open ones of this provider")
    which.add_argument("--from", dest="from_time", type=_time, help="only those made at this time or later, such as 2026-11-28T08:00:00Z")
    which.add_argument("--until", dest="until_time", type=_time, help="only those made before this time")
    which.add_argument("--all", action="store_true", help="every open one")
    which.add_argument("--dry-run", action="store_true", help="count them and name some; change nothing")
    which.add_argument("--json", action="store_true", help="the report as one JSON object")
    return one


def _time(text: str) -> Timestamp:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise argparse.ArgumentTypeError("must be a time with its zone, such as 2026-11-28T08:00:00Z")
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def _payout(one: argparse.ArgumentParser) -> argparse.ArgumentParser:
    one.add_argument("payout_id")
    return one


def _reason(one: argparse.ArgumentParser) -> argparse.ArgumentParser:
    one.add_argument("--reason", required=True, help="why; it is kept with your name")
    return one


def _ask(options: argparse.Namespace, client: Client, method: str, **values: Any) -> Any:
    """The answer of the service that was named."""
    request = getattr(_WITH_DEAD_LETTERS[options.service], f"{method}Request")(**values)
    return getattr(getattr(client, options.service), method)(request)


def _list(options: argparse.Namespace, client: Client) -> Iterable[Message]:
    request = _WITH_DEAD_LETTERS[options.service].ListDeadLettersRequest(state=_STATES.number("" if options.all else "OPEN"), page_size=200)
    return client.pages(getattr(client, options.service).ListDeadLetters, request, "dead_letters")


def _show(options: argparse.Namespace, client: Client) -> list[Message]:
    return [_ask(options, client, "GetDeadLetter", dead_letter_id=options.dead_letter_id)]


def _retry(options: argparse.Namespace, client: Client) -> Iterable[Message | str]:
    if _is_bulk(options):
        return _bulk(options, client, "RetryDeadLetters", ("retried",))
    return [_ask(options, client, "RetryDeadLetter", dead_letter_id=options.dead_letter_id, reason=options.reason)]


def _close(options: argparse.Namespace, client: Client) -> Iterable[Message | str]:
    if _is_bulk(options):
        return _bulk(options, client, "CloseDeadLetters", ("closed", "resolved"), evidence=options.evidence)
    values = {"dead_letter_id": options.dead_letter_id, "reason": options.reason, "evidence": options.evidence}
    return [_ask(options, client, "CloseDeadLetter", **values)]


def _is_bulk(options: argparse.Namespace) -> bool:
    """Whether many dead letters are named."""
    many = bool(options.cause or options.provider or options.from_time or options.until_time or options.all)
    if many == bool(options.dead_letter_id):
        raise Failure("Give either a dead letter's id, or a filter: --cause, --provider, --from, --until, or --all.")
    if options.dead_letter_id and (options.dry_run or options.json):
        raise Failure("--dry-run and --json go with a filter, not with a dead letter's id.")
    return many


def _bulk(options: argparse.Namespace, client: Client, method: str, ends: tuple[str, ...], **values: str) -> Iterable[str]:
    """Calls page by page until there are no more, with progress on stderr; the report."""
    wanted = recovery_pb2.DeadLetterFilter(cause=options.cause, provider=options.provider, from_time=options.from_time, until_time=options.until_time)
    values = {"filter": wanted, "all": options.all, "reason": options.reason, **values}  # type: ignore[dict-item]
    found = _ask(options, client, method, dry_run=True, **values)
    report: dict[str, Any] = {"matched": found.matched, **dict.fromkeys(ends, 0), "skipped": []}
    report["counts"] = [{"cause": one.cause, "provider": one.provider, "count": one.count} for one in found.counts]
    if options.dry_run:
        report |= {"dry_run": True, "sample": list(found.sample)}
        return [_report(report, ends, as_json=options.json)]
    token, looked_at = "", 0
    while True:
        page = _ask(options, client, method, page_token=token, **values)
        looked_at += page.matched
        for end in ends:
            report[end] += getattr(page, end)
        report["skipped"] += [MessageToDict(one, preserving_proto_field_name=True) for one in page.skipped]
        print(f"{looked_at} of {found.matched}: {_ended(report, ends)}", file=sys.stderr, flush=True)
        token = page.next_page_token
        if not token:
            return [_report(report, ends, as_json=options.json)]


def _ended(report: Mapping[str, Any], ends: tuple[str, ...]) -> str:
    return ", ".join([*(f"{report[end]} {end}" for end in ends), f"{len(report['skipped'])} skipped"])


def _report(report: Mapping[str, Any], ends: tuple[str, ...], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(report)
    lines = [f"{report['matched']} matched; nothing was changed" if report.get("dry_run") else f"{report['matched']} matched: {_ended(report, ends)}"]
    lines += [f"  {one['count']} {one['cause']} of {one['provider']}" for one in report["counts"]]
    lines += [f"  {id_}" for id_ in report.get("sample", ())]
    lines += [f"  skipped {one['dead_letter_id']} ({one['cause']}): {one['error_reason']}: {one['message']}" for one in report["skipped"]]
    return "\n".join(lines)


def _unapplied(options: argparse.Namespace, client: Client) -> Iterable[Message]:
    request = payment_service_pb2.ListUnappliedChargesRequest(acknowledged=options.all, page_size=200)
    return client.pages(client.payment.ListUnappliedCharges, request, "unapplied_charges")


def _acknowledge_charge(options: argparse.Namespace, client: Client) -> list[Message]:
    request = payment_service_pb2.AcknowledgeUnappliedChargeRequest(unapplied_charge_id=options.unapplied_charge_id, reason=options.reason)
    return [client.payment.AcknowledgeUnappliedCharge(request).unapplied_charge]


def _alerts(options: argparse.Namespace, client: Client) -> Iterable[Message]:
    request = _WITH_ALERTS[options.service].ListAlertsRequest(ended=options.all, page_size=200)
    return client.pages(getattr(client, options.service).ListAlerts, request, "alerts")


def _list_payouts(options: argparse.Namespace, client: Client) -> Iterable[Message]:
    request = payout_service_pb2.ListPayoutsRequest(payout_state=_PAYOUT_STATES.number(options.state), seller_account=options.seller, page_size=200)
    return client.pages(client.payout.ListPayouts, request, "payouts")


def _show_payout(options: argparse.Namespace, client: Client) -> list[Message]:
    return [client.payout.GetPayout(payout_service_pb2.GetPayoutRequest(payout_id=options.payout_id))]


def _decide(verb: str) -> Work:
    def work(options: argparse.Namespace, client: Client) -> list[Message]:
        request = getattr(payout_service_pb2, f"{verb}PayoutRequest")(payout_id=options.payout_id, reason=options.reason)
        return [getattr(client.payout, f"{verb}Payout")(request).payout]

    return work


def _acknowledge_payout(options: argparse.Namespace, client: Client) -> list[Message]:
    request = payout_service_pb2.AcknowledgePayoutRequest(payout_id=options.payout_id, reason=options.reason)
    if options.report:
        request.report_number = options.report
    else:
        request.provider_reference = options.transfer
    return [client.payout.AcknowledgePayout(request).payout]


def _batch(options: argparse.Namespace, client: Client) -> Iterable[Message]:
    request = payout_service_pb2.GetPayoutBatchRequest(payout_batch_id=options.payout_batch_id, page_size=1)
    while True:
        batch = client.payout.GetPayoutBatch(request).payout_batch
        yield batch
        if not options.follow or batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE:
            return
        time.sleep(_LOOK_AGAIN)
