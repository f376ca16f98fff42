"""WalletService: what each seller may be paid."""
