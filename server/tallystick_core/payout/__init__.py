"""The rules of payouts: states, quotes, destinations, schedules, batches and reported transfers."""
