"""The seams of the store: a Protocol each, and the values that cross it."""
