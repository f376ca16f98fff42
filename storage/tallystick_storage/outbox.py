"""The outbox, the same in every schema that has one: what each transaction changed, deleted once EventService has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True)
class Unpublished:
    """What a transaction has to tell: `request` is a BatchPublishRequest with so many events, serialized; it may hold more than EventService takes."""

    sequence: int
    events: int
    request: bytes


_TELL = text("update outbox set request = :request where sequence = :sequence")
# An aggregate's later change draws its sequence number under the aggregate's lock, when the earlier one is committed: in this order none overtakes.
_UNPUBLISHED = text("select sequence, cardinality(versions) as events, request from outbox order by sequence limit :most")
_PUBLISHED = text("delete from outbox where sequence = any (cast(:sequences as bigint[]))")


def told(source: str, aggregate: str, version: str = "version") -> str:
    """The part of a statement that names what another part, `source`, has changed: by an aggregate's id and its version, in one row of the outbox, if any."""
    return f"""told as (
        insert into outbox (aggregate_ids, versions) select array_agg({aggregate}), array_agg({version}) from {source} having count(*) > 0
        returning sequence)"""


def tell(connection: Connection, sequence: int, request: bytes) -> None:
    """Says in events what the row names. Without it the transaction does not commit."""
    connection.execute(_TELL, {"sequence": sequence, "request": request})


def unpublished(connection: Connection, most: int) -> list[Unpublished]:
    """What EventService has not confirmed, up to so many rows; the changes of an aggregate in order, from its first on."""
    return [Unpublished(row.sequence, row.events, bytes(row.request)) for row in connection.execute(_UNPUBLISHED, {"most": most})]


def published(connection: Connection, sequences: Sequence[int]) -> None:
    """Forgets what EventService has confirmed."""
    connection.execute(_PUBLISHED, {"sequences": list(sequences)})
