"""The rules of seller wallets: balances, holds, instructions and seller ownership."""
