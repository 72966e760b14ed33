"""The one connection to NATS that the wake-up path and the sinks share; nats-py is loaded by `connection` alone."""
