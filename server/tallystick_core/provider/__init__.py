"""The interfaces that payment and payout providers implement, and the outcomes they report."""
