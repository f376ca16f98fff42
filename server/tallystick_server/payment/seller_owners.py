"""Seller owners: which sellers a caller may name in orders.

These are the sellers of its owner, and unowned sellers, which are claimed for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.observability import names
from tallystick_server.operations.batcher import MAX_QUEUED_CALLS, Batcher, bisect_on_error
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.seller_owners import SellerOwners
from tallystick_server.rpc.service_client import ServiceCallRejected
from tallystick_storage.database import Database
from tallystick_storage.payment import seller_owners as store

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5.0
_REFRESH_TIMEOUT_SECONDS = 1.0
"""Timeout for known sellers, whose stored owner is used if there is no answer."""
# Seconds for which WalletService is not queried about known sellers after it failed to answer.
_UNAVAILABLE_SECONDS = 5.0
_MAX_CACHED = 100_000


@dataclass(frozen=True, slots=True)
class _OwnershipQuery:
    """Sellers named in an owner's order whose owner must be confirmed."""

    owner: str
    sellers: tuple[str, ...]
    stored_owners: Mapping[str, str]
    """Their owners as last stored in this service."""

    @property
    def matches_stored(self) -> bool:
        """Whether all of them belonged to the owner when WalletService was last queried."""
        return all(self.stored_owners.get(seller) == self.owner for seller in self.sellers)


@dataclass(frozen=True, slots=True)
class _CachedOwner:
    owner: str
    expires_at: float
    """Loop time until which the cached owner is used."""


class SellerOwnerCache:
    """Queries WalletService about a seller at most once per `seller_owner_max_age_seconds`, so an
    assignment takes effect within that time.

    A known seller stays usable while WalletService is unavailable. A seller is never rejected as
    another owner's on cached data alone.
    """

    def __init__(
        self, database: Database, owners: SellerOwners, seller_owner_max_age_seconds: float
    ) -> None:
        self._database = database
        self._owners = owners
        self._max_age_seconds = seller_owner_max_age_seconds
        self._cache: dict[str, _CachedOwner] = {}
        self._unavailable_until = 0.0
        self._unstored_owners: dict[str, str] = {}
        self.lookup_batcher: Batcher[tuple[str, ...], Mapping[str, str]] = Batcher(
            "payment.load_seller_owners",
            self._load_stored,
            max_batch=MAX_ITEMS,
            size_of=len,
            concurrency=2,
            drop_abandoned=True,
            max_queued=MAX_QUEUED_CALLS,
        )
        # Separate batchers: queries that must have an answer of WalletService may hang. They must
        # not delay queries that can do without one.
        self.seller_claim_batcher = self._make_batcher("payment.claim_sellers")
        self.refresh_batcher = self._make_batcher("payment.refresh_seller_owners")

    def _make_batcher(self, name: str) -> Batcher[_OwnershipQuery, Mapping[str, str]]:
        return Batcher(
            name,
            lambda queries: bisect_on_error(self._resolve_owners, queries),
            max_batch=MAX_ITEMS,
            size_of=lambda query: len(query.sellers),
            concurrency=2,
            drop_abandoned=True,
            max_queued=MAX_QUEUED_CALLS,
        )

    @property
    def batchers(self) -> tuple[Batcher[Any, Any], ...]:
        return (
            self.lookup_batcher,
            self.refresh_batcher,
            self.seller_claim_batcher,
        )

    async def find_foreign_sellers(
        self, owner: str, sellers: Collection[str], require_storable: Callable[[], Awaitable[None]]
    ) -> set[str]:
        """Returns the sellers that belong to another owner. If there are none, all of them now
        belong to this owner.

        `require_storable` raises ApiError before sellers are claimed for a payment that will not be
        stored. Raises that error, and DEPENDENCY_UNAVAILABLE.
        """
        now = asyncio.get_running_loop().time()
        uncertain_sellers = tuple(
            sorted(seller for seller in sellers if not self._is_owned_by(seller, owner, now))
        )
        if not uncertain_sellers:
            return set()
        stored_owners = await self.lookup_batcher.submit(uncertain_sellers)
        query = _OwnershipQuery(
            owner,
            uncertain_sellers,
            {
                seller: stored_owners[seller]
                for seller in uncertain_sellers
                if seller in stored_owners
            },
        )
        if not query.matches_stored:
            await require_storable()
        owners = await (
            self.refresh_batcher if query.matches_stored else self.seller_claim_batcher
        ).submit(query)
        foreign_sellers = {
            seller for seller in uncertain_sellers if owners.get(seller, owner) != owner
        }
        # Still without an owner after the claim: counts as foreign.
        return foreign_sellers or {seller for seller in uncertain_sellers if seller not in owners}

    def _is_owned_by(self, seller: str, owner: str, now: float) -> bool:
        entry = self._cache.get(seller)
        return entry is not None and entry.owner == owner and now < entry.expires_at

    async def _load_stored(self, groups: Sequence[tuple[str, ...]]) -> Sequence[Mapping[str, str]]:
        """The stored owners by seller, the same mapping for each group."""
        seller_ids = sorted({seller for group in groups for seller in group})
        owners = await self._database.load(
            lambda connection: store.find_owners(connection, seller_ids)
        )
        owners |= {
            seller: self._unstored_owners[seller]
            for seller in seller_ids
            if seller in self._unstored_owners
        }
        return [owners] * len(groups)

    async def _resolve_owners(
        self, queries: Sequence[_OwnershipQuery]
    ) -> Sequence[Mapping[str, str] | Exception]:
        """Returns owners by seller for each query, or the error.

        Raises ServiceCallRejected if one of several queries may be at fault.
        """
        now = asyncio.get_running_loop().time()
        all_stored = all(query.matches_stored for query in queries)
        if all_stored and now < self._unavailable_until:
            return [query.stored_owners for query in queries]
        try:
            async with asyncio.timeout(
                _REFRESH_TIMEOUT_SECONDS if all_stored else _TIMEOUT_SECONDS
            ):
                owners = await self._query_owners(queries)
        except (TimeoutError, ApiError, ServiceCallRejected) as error:
            if isinstance(error, ServiceCallRejected):
                if len(queries) > 1:
                    raise
                log.warning(
                    "WalletService does not answer who owns a seller: %s",
                    error,
                    extra=names.SELLER_OWNER_UNKNOWN.extra,
                )
            else:
                self._unavailable_until = asyncio.get_running_loop().time() + _UNAVAILABLE_SECONDS
            message = "The owner of a seller cannot be determined now. Nothing was stored."
            api_error = (
                error
                if isinstance(error, ApiError)
                else ApiError(ErrorReason.DEPENDENCY_UNAVAILABLE, message, retry_after=1.0)
            )
            return [query.stored_owners if query.matches_stored else api_error for query in queries]
        self._unavailable_until = 0.0
        self._cache_owners(
            owners,
            {seller: owner for query in queries for seller, owner in query.stored_owners.items()},
        )
        return [owners] * len(queries)

    async def _query_owners(self, queries: Sequence[_OwnershipQuery]) -> dict[str, str]:
        """Returns owners by seller.

        A payment claims all of its sellers, or none if one of them belongs to another owner.
        """
        return await self._owners.claim(
            [
                (seller, query.owner, group)
                for group, query in enumerate(queries, start=1)
                for seller in query.sellers
            ]
        )

    def _cache_owners(self, owners: Mapping[str, str], stored_owners: Mapping[str, str]) -> None:
        """Caches owners now. They are stored soon, for when WalletService does not answer."""
        expires_at = asyncio.get_running_loop().time() + self._max_age_seconds
        for seller, owner in owners.items():
            self._cache.pop(seller, None)
            self._cache[seller] = _CachedOwner(owner, expires_at)
        while len(self._cache) > _MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        changed_owners = {
            seller: owner for seller, owner in owners.items() if stored_owners.get(seller) != owner
        }
        if changed_owners:
            self._unstored_owners = self._unstored_owners | changed_owners

    async def store_owners(self) -> None:
        """Stores the owners found since the last call, all at once. Those that could not be stored
        are asked for again after a restart.
        """
        owners = self._unstored_owners
        if not owners:
            return
        await self._database.transact(
            lambda connection: store.save_owners(connection, owners), idempotent=True
        )
        self._unstored_owners = {
            seller: owner
            for seller, owner in self._unstored_owners.items()
            if owners.get(seller) != owner
        }
