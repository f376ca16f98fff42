"""Status pages are found by their exact token only, and no answer says how near a token came."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from statistics import median

import aiohttp
import pytest

from tallystick import Client, new_order
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_server.app.services import HTTP_SERVER, service_names
from tests.support.platform import ServedPlatform, fresh_database, serve_platform, unique_id

_CONCURRENCY = 8
_MAX_RATIO = 1.25


@pytest.fixture(scope="module")
def platform(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPlatform]:
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("tokens")) as databases,
        serve_platform(databases, names=(*service_names(), HTTP_SERVER)) as served,
    ):
        yield served


def create_link(client: Client) -> str:
    """The URL of the status page of a new payment."""
    order = new_order(unique_id("o"), "buyer-1", unique_id("s"), "3.00", "EUR")
    payment = client.create_payment(unique_id("c"), [order], credit_card_info="tok_visa")
    request = pb.CreateStatusLinkRequest(checkout_id=payment.checkout_id)
    return client.payment.CreateStatusLink(request).status_url


def near_miss(token: str, number: int) -> str:
    """The token with one digit changed, or with two exchanged."""
    index = number % len(token)
    other = format((int(token[index], 16) + 1 + number // len(token) % 15) % 16, "x")
    return token[:index] + other + token[index + 1 :]


def test_wrong_tokens_are_not_found_in_equal_time(
    platform: ServedPlatform, *, thorough: bool
) -> None:
    """10,000 random tokens and 10,000 that differ in one digit (of each 500 without --thorough) are
    answered with 404, by the same page, and take the same time.
    """
    count = 10_000 if thorough else 500
    with platform.client() as client:
        url = create_link(client)
    base, _, token = url.rpartition("/")
    # in alternation, so that a change of the machine's load hits both
    tokens = [
        wrong
        for number in range(count)
        for wrong in (secrets.token_hex(16), near_miss(token, number))
    ]
    assert token not in tokens
    seconds: dict[int, list[float]] = {0: [], 1: []}
    bodies: set[bytes] = set()

    async def ask(session: aiohttp.ClientSession, numbered: Iterator[tuple[int, str]]) -> None:
        for number, wrong in numbered:
            start = time.perf_counter()
            async with session.get(f"{base}/{wrong}") as response:
                bodies.add(await response.read())
                assert response.status == 404
            seconds[number % 2].append(time.perf_counter() - start)

    async def ask_all() -> None:
        numbered = iter(enumerate(tokens))
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(ask(session, numbered) for _ in range(_CONCURRENCY)))
            async with session.get(url) as response:
                assert response.status == 200

    asyncio.run(ask_all())
    assert len(bodies) == 1
    assert len(seconds[0]) == len(seconds[1]) == count
    random_seconds, near_seconds = (median(seconds[kind]) for kind in (0, 1))
    ratio = near_seconds / random_seconds
    print(f"random {random_seconds * 1000:.2f} ms, near {near_seconds * 1000:.2f} ms: {ratio:.3f}")
    assert 1 / _MAX_RATIO < ratio < _MAX_RATIO
