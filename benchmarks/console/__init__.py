"""How long each page of the console takes, and how many statements and calls it causes."""
