"""The tables of WalletService: wallets, holds, entries, seller ownership."""
