"""`crucible serve`: runs for other programs, by socket and by HTTP."""
