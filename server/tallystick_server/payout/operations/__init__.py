"""The operation kinds of PayoutService."""
