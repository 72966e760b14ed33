"""What `runner bench` does: measure the bus of a configuration, in a place that is thrown away."""
