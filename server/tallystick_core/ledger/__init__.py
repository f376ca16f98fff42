"""The rules of the double-entry ledger: postings, their lines and the hash chain."""
