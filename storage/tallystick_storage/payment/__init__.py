"""What PaymentService keeps: payments and their orders, deliveries, charges that fit no order."""
