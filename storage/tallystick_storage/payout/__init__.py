"""What PayoutService keeps: payouts, the transfers made for them, destinations, schedules,
batches.
"""
