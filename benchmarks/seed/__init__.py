"""Fills a fresh database with payments, payouts and all that belongs to them.

1. The platform runs for a moment and creates the templates: a payment of each kind, a payout in
   each state, schedules and a batch (`templates`).
2. Temporary tables say what is to be cloned (`source_tables`).
3. Set-based SQL copies the rows of the templates under new ids, times and sellers, with their own
   fingerprints, seals and events. Only the body of an event stays that of its template.
4. Python chains the transactions of the ledger by the ledger's own code (`ledger`).

Triggers are off meanwhile. Indexes are dropped before, and created again at the end (`indexes`).
`tallystick verify` passes on the result.
"""
