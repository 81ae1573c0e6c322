"""Bytes from elsewhere, whole and verified: a file is in its place only once its hash has been checked."""
