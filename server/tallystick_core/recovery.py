"""What is done next with a charge that does not come to its end by itself."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from tallystick_core.payment import Status
from tallystick_core.provider import Trouble


class Step(StrEnum):
    """What is done with a charge when it is taken up."""

    SEND = "SEND"
    """Demand it, under the attempt's key."""
    LOOK_UP = "LOOK_UP"
    """Ask what became of the demand."""
    CANCEL = "CANCEL"
    """Have the provider end it."""
    GIVE_UP = "GIVE_UP"
    """Fail it: it was never sent, and is not wanted any more."""
    JUDGE = "JUDGE"
    """Apply the answer that is on disk already."""
    SETTLE = "SETTLE"
    """Credit the wallet, post to the ledger."""


def next_step(statuses: Iterable[Status], *, answered: bool, ending: bool, maybe_sent: bool, looking: bool, key_honoured: bool) -> Step:
    """What comes next for a charge whose orders have these statuses; those of one charge move together.

    `answered`: its attempt has ended; `ending`: it was cancelled, or its time is up; `maybe_sent`: it may have reached the provider;
    `looking`: sending has been given up; `key_honoured`: the provider surely still knows the attempt's key.
    """
    known = set(statuses)
    if Status.SUCCESS in known:
        return Step.SETTLE
    if answered:
        return Step.JUDGE
    if ending:
        return Step.CANCEL if maybe_sent or Status.PENDING in known else Step.GIVE_UP
    if Status.PENDING in known or looking or not key_honoured:
        return Step.LOOK_UP
    return Step.SEND


class Resort(StrEnum):
    """What is done with a charge when a retry policy is exhausted."""

    FAIL = "FAIL"
    """Surely nothing was charged: its orders are FAILED."""
    LOOK_UP = "LOOK_UP"
    """It is not sent again, only asked for."""
    SET_ASIDE = "SET_ASIDE"
    """It becomes a dead letter: a person decides."""


def resort(trouble: Trouble, *, maybe_sent: bool) -> Resort:
    """What follows when trouble of this kind has come too often. `maybe_sent`: the demand may have reached the provider at some time."""
    if trouble is Trouble.NOT_SENT and not maybe_sent:
        return Resort.FAIL
    if trouble in (Trouble.NOT_SENT, Trouble.NO_ANSWER, Trouble.SERVER_ERROR, Trouble.BUSY, Trouble.FORBIDDEN):
        return Resort.LOOK_UP
    return Resort.SET_ASIDE
