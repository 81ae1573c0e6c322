"""Sockets and HTTP as both daemons, Granville and Crucible, open them: who may come in, how they are read and told."""
