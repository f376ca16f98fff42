"""Reconciliation of statements."""
