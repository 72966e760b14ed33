"""Examine a deployment and everything it stands on: a verdict, a measured value and a cure for each check."""
