"""PaymentService: accepts payments, from the call to `is_payment_done`. `operations/charge.py`
shows the whole sequence.
"""
