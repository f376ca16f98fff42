"""The links to the status pages of buyers: created with a hosted page, or on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID

from tallystick_core.errors import ApiError, ErrorReason, not_found_error
from tallystick_core.status_link import STATUS_PATH
from tallystick_storage.database import Database
from tallystick_storage.payment import status_links as store
from tallystick_storage.sql import Connection


@dataclass(frozen=True, slots=True)
class StatusLinkSettings:
    """`public_url`: where buyers reach the HTTP server, without a slash at the end; "": nowhere."""

    public_url: str
    lifetime_seconds: float


class StatusLinks:
    """Creates, finds and revokes links. `new_id`: makes random ids of 122 bits; a token is one."""

    def __init__(
        self, database: Database, settings: StatusLinkSettings, new_id: Callable[[], UUID]
    ) -> None:
        self._database = database
        self._settings = settings
        self._new_id = new_id

    @property
    def is_available(self) -> bool:
        """Whether buyers can reach status pages."""
        return bool(self._settings.public_url)

    def new_link(self, checkout_id: str, min_seconds: float = 0.0) -> store.NewStatusLink:
        """A link to store, which is valid for at least `min_seconds`."""
        token = self._new_id().hex
        return store.NewStatusLink(
            checkout_id,
            _hash(token),
            f"{self._settings.public_url}{STATUS_PATH}/{token}",
            max(self._settings.lifetime_seconds, min_seconds),
        )

    async def create(self, checkout_id: str) -> store.StatusLinkRow:
        """The valid link of a payment, which is created if there is none. Raises
        METHOD_NOT_IMPLEMENTED without an HTTP server.
        """
        if not self.is_available:
            message = "There are no status pages: the platform's setting http.public_url is empty."
            raise ApiError(ErrorReason.METHOD_NOT_IMPLEMENTED, message)
        link = self.new_link(checkout_id)

        def create(connection: Connection) -> store.StatusLinkRow | None:
            store.insert(connection, [link])
            return store.find(connection, checkout_id)

        stored = await self._database.transact(create)
        if stored is None:  # it has expired or was revoked already
            raise ApiError(ErrorReason.CONFLICT, "The link has just ended; retry.", retry_after=0.2)
        return stored

    async def revoke(self, checkout_id: str) -> bool:
        """Revokes the link of a payment. Returns whether it had a valid one."""
        return await self._database.transact(
            lambda connection: store.revoke(connection, checkout_id)
        )

    async def find_checkout(self, status_token: str) -> str:
        """The payment of a valid link. Raises NOT_FOUND, whatever is wrong with the token: no
        answer says how much of it is right.
        """
        checkout_id = await self._database.load(
            lambda connection: store.find_checkout(connection, _hash(status_token))
        )
        if checkout_id is None:
            raise not_found_error("status page", "of this link")
        return checkout_id


def _hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()
