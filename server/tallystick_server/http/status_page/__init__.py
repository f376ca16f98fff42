"""The buyer's status page: the state of a payment in plain words, for everyone who has its link."""
