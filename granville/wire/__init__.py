"""Bytes to messages and back, without I/O. docs/protocol.md is its specification."""
