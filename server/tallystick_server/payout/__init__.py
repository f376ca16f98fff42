"""PayoutService: declared, not built yet."""
