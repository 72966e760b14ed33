"""Decisions without I/O: what follows from an outcome, when a receiver is left alone, what matches."""
