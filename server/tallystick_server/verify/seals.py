"""Checks that each row matches its seal and agrees with the other rows of its schema."""

from __future__ import annotations

from tallystick_server.app.services import SERVICES, service_names
from tallystick_server.verify.report import Check, QueryRunner
from tallystick_storage.verify import broken_seals


def check_seals(read: QueryRunner) -> Check:
    """The content of each sealed row matches the hash that was written with it. The database
    compares, so valid rows are not transferred.
    """
    check = Check("each row matches its seal", "S5")
    for schema in service_names():
        for table in read(f"{schema}.sealed_tables", schema=schema):
            check.count_row()
            for row in read(
                f"{schema}.broken_seals",
                statement=broken_seals(schema, table.name, table.key, table.content),
            ):
                check.fail(
                    f"{schema}.{table.name} {row.key}",
                    "has no seal" if row.missing else "does not match its seal",
                )
    return check


def check_derived(read: QueryRunner) -> Check:
    """Values derived from other rows of a schema are correct: times, counts, attempts, policies."""
    check = Check("derived rows match their sources", "P4")
    for spec in SERVICES:
        for name in spec.load_inconsistency_queries():
            check.count_row()
            check.fail_each(read(name))
    return check
