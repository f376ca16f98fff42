"""PaymentService: accepts payments, from the call to `is_payment_done`. `worker.py` shows the whole
sequence.
"""
