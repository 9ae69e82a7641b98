"""Benchmarks of jaxdave.

Each script prints what it ran on, prints tables and asserts its claims; `--help` tells
what it measures. `python -m bench` takes the project's measures: docs/results.md.
"""
