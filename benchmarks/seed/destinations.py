"""Fills a fresh database with sellers and their payout destinations only."""

from __future__ import annotations

import asyncio

import psycopg

from benchmarks.seed.clone import RowCloner
from benchmarks.seed.events import clone_seller_events, update_head
from benchmarks.seed.sellers import clone_destinations, clone_owners
from benchmarks.seed.templates import create_destination_template
from tallystick_server.app.database.connections import DatabaseUrls


def seed_destinations(database_urls: DatabaseUrls, sellers: int) -> None:
    """Inserts the sellers "seller-0", "seller-1" and so on, each with a verified destination. No
    service may run meanwhile. Raises StartupError.
    """
    asyncio.run(create_destination_template(database_urls))
    with psycopg.connect(database_urls.admin) as connection:
        # no triggers: what they would check is cloned whole
        connection.execute("set session_replication_role = replica")
        cloner = RowCloner(connection)
        connection.execute(f"""
            create temporary table new_seller as
            select 'seller-' || n as seller, now() as start_time
            from generate_series(0, {sellers - 1}) n
        """)
        clone_owners(cloner)
        clone_destinations(cloner)
        clone_seller_events(cloner)
        update_head(cloner)
