"""Answers to what an operator asks: pure functions from what the store knows to a verdict, or to a reason."""
