"""Decisions without I/O: retries, rates, order, breakers, filters, limits."""
