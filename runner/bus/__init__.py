"""The bus: publishing, in commits that callers share, and the signals that follow."""
