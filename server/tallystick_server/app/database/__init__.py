"""The databases of a process: roles, migrations, schemas, connections, embedded PostgreSQL."""
