"""Reconciles a file about as many charges as it has lines, with mismatches that must be found."""
