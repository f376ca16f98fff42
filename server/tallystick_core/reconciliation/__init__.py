"""Reconciliation: statements of providers and banks against the platform's own books."""
