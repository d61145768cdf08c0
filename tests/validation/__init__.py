"""Whether every object is what the Standard wants, by the word of others: `make validate`."""
