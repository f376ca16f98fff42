"""Concurrent calls with the same key, over two processes of PaymentService."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tallystick import AlreadyExistsError, AsyncClient, ClientSettings, new_order
from tallystick.payment.v1 import payment_pb2
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.verify.run import verify
from tests.support.payments import charge_log
from tests.support.platform import free_address
from tests.support.processes import environment_of, running_process

CALLS_PER_KEY = 100
CONCURRENT_KEYS = 20  # keys in progress at a time, each with all its calls


@pytest.fixture
def two_processes(scratch_database: DatabaseUrls) -> Iterator[tuple[str, str]]:
    """Two processes that serve everything, each at its own address, on one database."""
    with ExitStack() as stack:
        addresses = (free_address(), free_address())
        for address in addresses:
            stack.enter_context(
                running_process(
                    ["serve", "all"],
                    {**environment_of(scratch_database), "TALLYSTICK_SERVER__LISTEN": address},
                    address,
                )
            )
        yield addresses


def create_payment(
    client: AsyncClient, key: int, amount: str = "5.00"
) -> asyncio.Future[payment_pb2.Payment]:
    orders = [new_order(f"k-{key}-o", f"buyer-{key}", f"seller-{key % 50}", amount, "EUR")]
    return asyncio.ensure_future(
        client.create_payment(f"k-{key}", orders, credit_card_info="tok_visa")
    )


async def distinct_responses(clients: tuple[AsyncClient, ...], key: int) -> set[bytes]:
    """The distinct answers to concurrent calls with one key."""
    responses = await asyncio.gather(
        *(create_payment(clients[n % len(clients)], key) for n in range(CALLS_PER_KEY))
    )
    return {response.SerializeToString(deterministic=True) for response in responses}


async def reuse_reason(client: AsyncClient, key: int) -> str:
    """The rejection of another body with a used key."""
    with pytest.raises(AlreadyExistsError) as error:
        await create_payment(client, key, f"{key % 9 + 1}.07")
    return str(error.value.reason)


def test_a_hundred_concurrent_calls_per_key_make_one_charge(
    scratch_database: DatabaseUrls, two_processes: tuple[str, str], thorough: bool
) -> None:
    """K1, K2, for 40 keys (1,000 if thorough): a hundred calls with a key make one charge and get
    the same answer. Ten calls with the key and another body are rejected without effect.
    """

    keys = 1_000 if thorough else 40

    async def all_calls() -> None:
        settings = ClientSettings(deadlines={"CreatePayment": 60.0})
        async with (
            AsyncClient(two_processes[0], settings=settings) as first,
            AsyncClient(two_processes[1], settings=settings) as second,
        ):
            key_slots = asyncio.Semaphore(CONCURRENT_KEYS)

            async def call_with_key(key: int) -> None:
                async with key_slots:
                    assert len(await distinct_responses((first, second), key)) == 1
                    error_reasons = await asyncio.gather(
                        *(reuse_reason((first, second)[n % 2], key) for n in range(10))
                    )
                    assert set(error_reasons) == {"IDEMPOTENCY_KEY_REUSED"}

            await asyncio.gather(*(call_with_key(key) for key in range(keys)))

    asyncio.run(all_calls())
    charge_rows = charge_log(scratch_database, "k-")
    assert len(charge_rows) == keys
    assert {(state, amount) for _, state, amount in charge_rows} == {("SUCCEEDED", 500)}
    report = verify(scratch_database)
    assert report.passed, report.as_text()
