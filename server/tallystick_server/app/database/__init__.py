"""The databases of a process: roles and migrations, schema checks, connections, embedded
PostgreSQL.
"""
