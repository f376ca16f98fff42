"""PayoutService: pays sellers out, from the call or the schedule to returns by their banks.
`operations/payout.py` shows the whole sequence.
"""
