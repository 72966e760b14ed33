"""The worker: it claims events and deliveries, runs them through sinks, and settles the outcomes."""
