"""PostgreSQL: engines, transactions (the only commit), one file of SQL per service, migrations."""
