"""Answers for operators: pure functions from the state of the store to a verdict or a reason."""
