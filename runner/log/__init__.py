"""What the process says: log lines, messages, and what is kept out of both."""
