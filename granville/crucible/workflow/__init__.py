"""What a workflow is, how it is read and checked, and what depends on what in it: pure, no clock, no I/O but files."""
