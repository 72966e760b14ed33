"""The work of an instance that is done at intervals, beside deliveries."""
