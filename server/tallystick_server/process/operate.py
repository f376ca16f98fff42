"""What an operator does from the command line: a client of the running platform, like any other."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from tallystick import Client, ClientSettings, TallystickError
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick.recovery.v1 import recovery_pb2
from tallystick_server.process.configuration import Settings
from tallystick_server.process.failure import Failure
from tallystick_server.runtime.fields import EnumNames

_STATES = EnumNames(recovery_pb2.DeadLetterState.DESCRIPTOR)


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands for operators."""
    letters = commands.add_parser("dead-letters", help="what waits for a person: list, show, retry, close")
    verbs = letters.add_subparsers(required=True, metavar="VERB")
    one = _command(verbs, "list", "newest first", _list)
    one.add_argument("--all", action="store_true", help="also those that have ended")
    _letter(_command(verbs, "show", "one, with the orders of its charge", _show))
    one = _letter(_command(verbs, "retry", "have it tried again", _retry))
    one.add_argument("--reason", required=True, help="kept in the history")
    one = _letter(_command(verbs, "close", "fail its orders", _close))
    one.add_argument("--reason", required=True, help="kept in the history")
    one.add_argument("--evidence", required=True, help="what shows that the provider charged nothing")
    _command(commands, "unapplied-charges", "money that fits no order, newest first", _unapplied)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str, work: Callable[[argparse.Namespace, Client], list[Message]]
) -> argparse.ArgumentParser:
    one = commands.add_parser(name, help=about)
    one.add_argument("--address", help="where PaymentService is; by default TALLYSTICK_LISTEN")

    def run(options: argparse.Namespace, settings: Settings) -> int:
        address = options.address or settings.listen
        token = os.environ.get("TALLYSTICK_TOKEN", "")
        try:
            with Client(address, settings=ClientSettings(token=token)) as client:
                for message in work(options, client):
                    print(json.dumps(MessageToDict(message, preserving_proto_field_name=True)))
        except TallystickError as error:
            raise Failure(f"{address}: {error}") from None
        return 0

    one.set_defaults(run=run)
    return one


def _letter(one: argparse.ArgumentParser) -> argparse.ArgumentParser:
    one.add_argument("dead_letter_id")
    return one


def _list(options: argparse.Namespace, client: Client) -> list[Message]:
    request = pb.ListDeadLettersRequest(state=_STATES.number("" if options.all else "OPEN"), page_size=200)
    found: list[Message] = []
    while True:
        answer = client.payment.ListDeadLetters(request)
        found += answer.dead_letters
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


def _show(options: argparse.Namespace, client: Client) -> list[Message]:
    return [client.payment.GetDeadLetter(pb.GetDeadLetterRequest(dead_letter_id=options.dead_letter_id))]


def _retry(options: argparse.Namespace, client: Client) -> list[Message]:
    return [client.payment.RetryDeadLetter(pb.RetryDeadLetterRequest(dead_letter_id=options.dead_letter_id, reason=options.reason))]


def _close(options: argparse.Namespace, client: Client) -> list[Message]:
    request = pb.CloseDeadLetterRequest(dead_letter_id=options.dead_letter_id, reason=options.reason, evidence=options.evidence)
    return [client.payment.CloseDeadLetter(request)]


def _unapplied(_options: argparse.Namespace, client: Client) -> list[Message]:
    request = pb.ListUnappliedChargesRequest(page_size=200)
    found: list[Message] = []
    while True:
        answer = client.payment.ListUnappliedCharges(request)
        found += answer.unapplied_charges
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token
