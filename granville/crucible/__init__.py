"""Crucible: workflows of several requests to Granville, run to the end in a process of their own (docs/crucible.md)."""
