"""One Alembic history for each service's schema. Its first makes what every schema has, `clock()` and `mark` among it, by `create`; every later one only calls `run`."""

from typing import Any

from alembic import op
from sqlalchemy import text

_EVERY_SCHEMA = """
-- The only clock. The simulation replaces it.
create function clock() returns timestamptz language sql volatile as 'select clock_timestamp()';

-- For what is only ever added to.
create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only', tg_table_name using errcode = 'P0001';
end $$;

-- One row for each writing transaction, so that a lost COMMIT can be told from one that never was.
create table mark (id uuid primary key, create_time timestamptz not null) with (autovacuum_vacuum_scale_factor = 0.01);
create index mark_by_time on mark using brin (create_time);
grant select, insert, delete on mark to {service};
"""


def create(schema: str, *scripts: str) -> None:
    """The first migration of a schema."""
    run(schema, _EVERY_SCHEMA, *scripts)


def run(schema: str, *scripts: str) -> None:
    """Runs SQL in the schema as its owner; {service} and {reader} stand for the service's role and its read-only role."""
    connection = op.get_bind()
    roles = op.get_context().config.attributes["roles"]  # type: ignore[union-attr]
    connection.execute(text(f"set local search_path = {schema}, pg_temp"))
    driver: Any = connection.connection.driver_connection  # past SQLAlchemy, which takes every % for a placeholder
    for script in scripts:
        driver.execute(script.replace("{service}", roles["service"]).replace("{reader}", roles["reader"]))
