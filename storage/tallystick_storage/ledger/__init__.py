"""The tables of LedgerService: transactions, entries, accounts."""
