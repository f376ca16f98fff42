"""PayoutService: pays sellers out, from the call or the schedule to what their banks do with it.
`flow.py` tells the whole way.
"""
