"""The rules of payments: states, checkouts, charges, risk and fees."""
