"""WalletService: the balance of each seller, and the funds available for payouts."""
