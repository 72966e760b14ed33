"""What claims, dispatches, delivers and settles."""
