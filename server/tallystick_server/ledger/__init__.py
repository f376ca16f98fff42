"""LedgerService: the append-only, hash-chained book."""
