"""A gateway to try without a key or a network: a stub provider, and the command that joins both."""
