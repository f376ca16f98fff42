"""The tables of PaymentService: payments and their orders, deliveries, unapplied charges."""
