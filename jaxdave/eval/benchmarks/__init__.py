"""Benchmarks: their files, their questions and how answers are graded."""
