"""Which file a name means, where it lies, and what is in it."""
