"""The pages of the console: each module has those about one subject."""
