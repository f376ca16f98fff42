"""PaymentService: takes payments in, from the call to `is_payment_done`. `flow.py` tells the whole
way.
"""
