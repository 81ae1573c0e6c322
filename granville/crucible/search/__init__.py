"""Search in a folder of documents: full text and vectors in one SQLite file."""
