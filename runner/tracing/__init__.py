"""Which event led to another, within a handler and from one process to the next."""
