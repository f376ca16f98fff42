"""Stripe: charges by token, payouts on connected accounts, webhooks and reports."""
