"""The operation kind of PaymentService."""
