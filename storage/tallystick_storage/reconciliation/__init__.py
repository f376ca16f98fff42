"""The tables of ReconciliationService: statement files, ledger entries, breaks, postings."""
