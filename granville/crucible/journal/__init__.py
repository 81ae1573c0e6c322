"""What a run has done, on disk, a step at a time."""
