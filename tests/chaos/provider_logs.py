"""What the providers have moved, by the records of the sandbox and of the look-alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg


class ProviderCharge(NamedTuple):
    """Money that a provider took. `amount` in minor units."""

    provider: str
    charge_id: str
    reference: str
    amount: int


class ProviderTransfer(NamedTuple):
    """Money that a provider paid to a seller, and what came of it back. Amounts in minor units."""

    provider: str
    payout_id: str
    reference: str
    amount: int
    returned_amount: int


_CHARGES = """
    select provider, charge_id, reference, amount from sandbox.charge where state = 'SUCCEEDED'
    union all
    select 'stripe', body->'metadata'->>'charge_id', id, (body->'amount_received')::bigint
    from sandbox.stripe_object where type = 'payment_intent' and body->>'status' = 'succeeded'
"""
_OPEN_PAGES = """
    select body->'metadata'->>'charge_id' from sandbox.stripe_object
    where type = 'checkout.session' and body->>'status' = 'open'
"""
_TRANSFERS = """
    select provider, payout_id, reference, amount, coalesce(returned_amount, 0)
    from sandbox.transfer where state in ('PAID', 'RETURNED')
    union all
    select 'stripe', p.body->'metadata'->>'payout_id', p.body->'metadata'->>'transfer',
        (p.body->'amount')::bigint,
        case when p.body->>'status' = 'failed' then (p.body->'amount')::bigint else 0 end
    from sandbox.stripe_object p where p.type = 'payout' and (p.body->>'status' = 'paid'
        or p.body->>'status' = 'failed' and p.id in (
            select body->'data'->'object'->>'id' from sandbox.stripe_object
            where type = 'event' and body->>'type' = 'payout.paid'))
"""
_KEPT_TRANSFERS = """
    select body->'metadata'->>'payout_id', id from sandbox.stripe_object t
    where type = 'transfer' and not (body->'reversed')::boolean and not exists (
        select from sandbox.stripe_object p where p.type = 'payout'
            and p.body->>'status' = 'paid' and p.body->'metadata'->>'transfer' = t.id)
"""


def read_charges(connection: psycopg.Connection[Any]) -> list[ProviderCharge]:
    return [ProviderCharge(*row) for row in connection.execute(_CHARGES)]


def read_open_pages(connection: psycopg.Connection[Any]) -> list[str]:
    """The charge of each page of the look-alike that can still be paid."""
    return [charge_id for (charge_id,) in connection.execute(_OPEN_PAGES)]


def read_transfers(connection: psycopg.Connection[Any]) -> list[ProviderTransfer]:
    """The payouts that were paid, also those that were returned later."""
    return [ProviderTransfer(*row) for row in connection.execute(_TRANSFERS)]


def read_kept_transfers(connection: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """The payout and the id of each transfer of the look-alike whose money is still on the
    connected account: it was neither paid out nor reversed.
    """
    return [(payout_id, id_) for payout_id, id_ in connection.execute(_KEPT_TRANSFERS)]
