"""The tables of PayoutService: payouts, their transfers, destinations, schedules, batches."""
