"""Helpers for tests of constraints."""

from __future__ import annotations

import json

import psycopg

from tallystick_server.app.database.connections import DatabaseUrls

ZERO_HASH = "decode(repeat('00', 32), 'hex')"


def execute_as(databases: DatabaseUrls, service: str, sql: str, role: str = "") -> str:
    """Runs SQL as the service's role, or as its owner; returns the SQLSTATE of the error, or ""."""
    url = databases.admin if role == "owner" else databases.service(service)
    with psycopg.connect(url) as connection:
        if role == "owner":
            connection.execute(f"set search_path = {service}")
        try:
            connection.execute(sql)
            connection.commit()
        except psycopg.Error as error:
            return error.sqlstate or "?"
    return ""


def copy_of(table: str, where: str = "true", **values: object) -> str:
    """An insert of the rows of a table that `where` selects, with other values in some columns."""
    changes = json.dumps(values).replace("'", "''")
    return (
        f"insert into {table} select (jsonb_populate_record(null::{table}, "
        f"to_jsonb(s) || '{changes}')).* from {table} s where {where}"
    )


def insert_event(aggregate: str, version: int, request: str = "'x'") -> str:
    return (
        f"insert into outbox (aggregate_ids, versions, request) values ('{{{aggregate}}}', "
        f"'{{{version}}}', {request})"
    )


EMPTY_TEXT = "''"
