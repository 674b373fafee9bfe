"""A run = a function that returns its whole config; and the functions that carry runs out."""
