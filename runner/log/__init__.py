"""Log lines and messages of the process, and the redaction of secrets."""
