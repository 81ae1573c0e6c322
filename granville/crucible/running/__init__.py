"""A workflow on its way to its end: steps side by side, retried, kept in a journal."""
