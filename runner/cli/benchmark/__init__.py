"""The benchmark behind `runner bench`: measure the bus of a configuration, in a place that is thrown away."""
