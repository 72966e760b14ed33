"""`runner check`: say what the configuration would build, without building it."""
