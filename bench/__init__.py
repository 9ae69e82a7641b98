"""Measurements: each script prints what it ran on, a table, and asserts its claim."""
