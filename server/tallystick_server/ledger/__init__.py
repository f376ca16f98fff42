"""LedgerService: the append-only, hash-chained ledger."""
