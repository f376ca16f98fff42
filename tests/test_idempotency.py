"""The same key from everywhere at once, over two processes of PaymentService."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tallystick import AlreadyExistsError, AsyncClient, ClientSettings, new_order
from tallystick.payment.v1 import payment_pb2
from tallystick_server.process.databases import Databases
from tallystick_server.process.verify import verify

from .conftest import free_address
from .test_pay_in import charges
from .test_serve import of, process

CALLS = 100
AT_ONCE = 20  # keys in hand at a time, each with all its calls


@pytest.fixture
def two_processes(own_database: Databases) -> Iterator[tuple[str, str]]:
    """Two processes that serve all, each at its own address, on one database."""
    with ExitStack() as stack:
        addresses = (free_address(), free_address())
        for address in addresses:
            stack.enter_context(process(["serve", "all"], {**of(own_database), "TALLYSTICK_LISTEN": address}, address))
        yield addresses


def call(client: AsyncClient, key: int, amount: str = "5.00") -> asyncio.Future[payment_pb2.Payment]:
    orders = [new_order(f"k-{key}-o", f"buyer-{key}", f"seller-{key % 50}", amount, "EUR")]
    return asyncio.ensure_future(client.create_payment(f"k-{key}", orders, credit_card_info="tok_visa"))


async def one_hundred_times(clients: tuple[AsyncClient, ...], key: int) -> set[bytes]:
    """The different answers to one key's simultaneous calls."""
    answers = await asyncio.gather(*(call(clients[n % len(clients)], key) for n in range(CALLS)))
    return {answer.SerializeToString(deterministic=True) for answer in answers}


async def reused(client: AsyncClient, key: int) -> str:
    """How another body under a key is refused."""
    with pytest.raises(AlreadyExistsError) as refused:
        await call(client, key, f"{key % 9 + 1}.07")
    return str(refused.value.reason)


def test_every_key_a_hundred_times_at_once(own_database: Databases, two_processes: tuple[str, str], thorough: bool) -> None:
    """K1, K2, for 100 keys (1,000 if thorough): a hundred calls of a key make one charge and are told the same, and ten reuses with another body are refused without effect."""

    keys = 1_000 if thorough else 100

    async def all_calls() -> None:
        settings = ClientSettings(deadlines={"CreatePayment": 60.0})
        async with AsyncClient(two_processes[0], settings=settings) as first, AsyncClient(two_processes[1], settings=settings) as second:
            room = asyncio.Semaphore(AT_ONCE)

            async def one(key: int) -> None:
                async with room:
                    assert len(await one_hundred_times((first, second), key)) == 1
                    refusals = await asyncio.gather(*(reused((first, second)[n % 2], key) for n in range(10)))
                    assert set(refusals) == {"KEY_REUSED"}

            await asyncio.gather(*(one(key) for key in range(keys)))

    asyncio.run(all_calls())
    made = charges(own_database, "k-")
    assert len(made) == keys
    assert {(state, amount) for _, state, amount in made} == {("SUCCEEDED", 500)}
    report = verify(own_database)
    assert report.passed, report.as_text()
