"""What a driver is, and how one is found. `interface` is all that a driver imports."""
