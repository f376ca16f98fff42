"""The formats of statements and settlement files, one module each."""
